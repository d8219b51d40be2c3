# What `cmake --install` puts where: the libraries, the public headers, the CMake package (find_package(stun_ext)) and
# the pkg-config file of the C library. Everything is found relative to its own place, so an installation can be moved.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(_package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/stun_ext)

function(stun_ext_install export)
  install(TARGETS ${ARGN} EXPORT ${export}
    RUNTIME DESTINATION ${CMAKE_INSTALL_BINDIR} COMPONENT stun_ext_runtime
    LIBRARY DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT stun_ext_runtime NAMELINK_COMPONENT stun_ext_development
    ARCHIVE DESTINATION ${CMAKE_INSTALL_LIBDIR} COMPONENT stun_ext_development
    INCLUDES DESTINATION ${CMAKE_INSTALL_INCLUDEDIR})
  install(EXPORT ${export} NAMESPACE stun_ext:: DESTINATION ${_package_dir} COMPONENT stun_ext_development)
endfunction()

function(stun_ext_install_headers folder)
  install(DIRECTORY ${folder}/ DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT stun_ext_development
    FILES_MATCHING PATTERN "*.hpp" PATTERN "*.h")
endfunction()

stun_ext_install(stun_ext-targets stun_ext_core_static stun_ext_core_shared stun_ext_c_static stun_ext_c_shared)
stun_ext_install_headers(cpp/include)
get_target_property(_cuda_major stun_ext_cuda STUN_EXT_CUDA_MAJOR)
if(_cuda_major)  # the stub without CUDA is for who builds this repository, not for an installation
  stun_ext_install(stun_ext-cuda-targets stun_ext_cuda)
  stun_ext_install_headers(cuda/include)
endif()

configure_package_config_file(cmake/stun_ext-config.cmake.in ${PROJECT_BINARY_DIR}/stun_ext-config.cmake
  INSTALL_DESTINATION ${_package_dir} NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/stun_ext-config-version.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/stun_ext-config.cmake ${PROJECT_BINARY_DIR}/stun_ext-config-version.cmake
  DESTINATION ${_package_dir} COMPONENT stun_ext_development)

# pkg-config: ${pcfiledir} is where the file lies.
cmake_path(RELATIVE_PATH CMAKE_INSTALL_PREFIX BASE_DIRECTORY ${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig OUTPUT_VARIABLE _prefix)
cmake_path(APPEND _libdir \${prefix} ${CMAKE_INSTALL_LIBDIR})  # an absolute folder replaces the prefix
cmake_path(APPEND _includedir \${prefix} ${CMAKE_INSTALL_INCLUDEDIR})
get_target_property(_private stun_ext_c_static STUN_EXT_CXX_RUNTIME)
list(TRANSFORM _private PREPEND -l)
list(JOIN _private " " _private)
string(APPEND _private " ${CMAKE_THREAD_LIBS_INIT}")
configure_file(cmake/stun_ext_c.pc.in ${PROJECT_BINARY_DIR}/stun_ext_c.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/stun_ext_c.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig
  COMPONENT stun_ext_development)
