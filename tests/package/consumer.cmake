# What the consumers share: their own rules, and that nothing of our build reaches them.
enable_testing()

# A program that keeps to strict warnings and hides its own symbols.
function(add_consumer name source library)
  add_executable(${name} ${CMAKE_CURRENT_FUNCTION_LIST_DIR}/${source})
  target_link_libraries(${name} PRIVATE ${library})
  target_compile_options(${name} PRIVATE -Wall -Wextra -Wpedantic -Werror)
  set_target_properties(${name} PROPERTIES C_STANDARD 11 C_EXTENSIONS OFF CXX_EXTENSIONS OFF
    C_VISIBILITY_PRESET hidden CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
  add_test(NAME ${name} COMMAND ${name} ${ARGN})
endfunction()

# Of a library's usage requirements only these may be there: C++17, include folders, libraries.
function(check_no_leaks)
  foreach(library IN LISTS ARGN)
    foreach(property IN ITEMS COMPILE_OPTIONS COMPILE_DEFINITIONS LINK_OPTIONS LINK_DIRECTORIES SOURCES
        PRECOMPILE_HEADERS)
      get_target_property(value ${library} INTERFACE_${property})
      if(value)
        message(FATAL_ERROR "${library} leaks ${property} into its consumers: ${value}")
      endif()
    endforeach()
    get_target_property(features ${library} INTERFACE_COMPILE_FEATURES)
    if(features AND NOT features STREQUAL "cxx_std_17")
      message(FATAL_ERROR "${library} asks its consumers for ${features}")
    endif()
  endforeach()
endfunction()

function(check_kind library kind)
  get_target_property(type ${library} TYPE)
  if(NOT type STREQUAL "${kind}_LIBRARY")
    message(FATAL_ERROR "${library} should be ${kind}, is ${type}")
  endif()
endfunction()
