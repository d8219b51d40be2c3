# The shared library exports what symbols.h lists, the header declares that, and the tests call it.
#   cmake -D NM=nm -D LIBRARY=libstun_ext_c.so "-D HEADERS=stun_ext.h;experts.h" -P check_symbols.cmake
set(_here ${CMAKE_CURRENT_LIST_DIR})

# Fails naming what one list has and the other lacks.
function(check_same what expected got hint)
  set(missing ${expected})
  list(REMOVE_ITEM missing ${got})
  set(extra ${got})
  list(REMOVE_ITEM extra ${expected})
  if(missing OR extra)
    message(SEND_ERROR "${what}\n  missing: ${missing}\n  unexpected: ${extra}\n${hint}")
  endif()
endfunction()

file(READ ${_here}/symbols.h text)
string(REGEX MATCHALL "stun_ext_[a-z0-9_]+\\(" recorded "${text}")
list(TRANSFORM recorded REPLACE "\\($" "")

execute_process(COMMAND ${NM} -D --defined-only ${LIBRARY} OUTPUT_VARIABLE exported COMMAND_ERROR_IS_FATAL ANY)
# Sanitizers add symbols of their own, which begin with two underscores.
string(REGEX MATCHALL "[0-9a-f]+ [A-Za-z] [^\n]+" exported "${exported}")
list(TRANSFORM exported REPLACE "^[0-9a-f]+ [A-Za-z] " "")
list(FILTER exported EXCLUDE REGEX "^__")
check_same("the shared library does not export what tests/c/symbols.h lists" "${recorded}" "${exported}"
  "A new function: add its declaration there, in alphabetical order.
One that is missing or was renamed breaks every program that was linked to the library: that needs a new soname.")

set(text "")
foreach(header IN LISTS HEADERS)
  file(READ ${header} more)
  string(APPEND text "${more}")
endforeach()
string(REGEX MATCHALL "\nSTUN_EXT_API [^(;]*\\(" declared "${text}")
list(TRANSFORM declared REPLACE "^.*[ *](stun_ext_[a-z0-9_]+)\\($" "\\1")
check_same("the headers do not declare what tests/c/symbols.h lists" "${recorded}" "${declared}" "")

file(GLOB tests ${_here}/test_*.c ${_here}/operations.c)
set(text "")
foreach(test IN LISTS tests)
  file(READ ${test} more)
  string(APPEND text "${more}")
endforeach()
foreach(name IN LISTS recorded)
  string(FIND "${text}" "${name}(" place)
  if(place EQUAL -1)
    message(SEND_ERROR "tests/c calls ${name} nowhere")
  endif()
endforeach()
