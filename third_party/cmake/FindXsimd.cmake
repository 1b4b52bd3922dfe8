# xsimd (C++ headers, BSD-3-Clause): target Xsimd::Xsimd, include as <xsimd/xsimd.hpp>.
#
# XSIMD_DIR names a folder that contains xsimd/xsimd.hpp, version 14 or later; left empty, the
# headers come from the pip package pythran.
include(FindPackageHandleStandardArgs)
include("${CMAKE_CURRENT_LIST_DIR}/PythonPackage.cmake")

if(XSIMD_DIR)
  set(xsimd_folder "${XSIMD_DIR}")
else()
  python_package_dir(xsimd_folder pythran)
endif()

unset(Xsimd_INCLUDE_DIR)
unset(Xsimd_VERSION)
if(EXISTS "${xsimd_folder}/xsimd/xsimd.hpp")
  set(Xsimd_INCLUDE_DIR "${xsimd_folder}")
  file(STRINGS "${xsimd_folder}/xsimd/config/xsimd_config.hpp" xsimd_lines
       REGEX "#define XSIMD_VERSION_(MAJOR|MINOR|PATCH) ")
  foreach(part IN ITEMS MAJOR MINOR PATCH)
    if(xsimd_lines MATCHES "XSIMD_VERSION_${part} ([0-9]+)")
      list(APPEND Xsimd_VERSION ${CMAKE_MATCH_1})
    endif()
  endforeach()
  list(JOIN Xsimd_VERSION "." Xsimd_VERSION)
endif()

find_package_handle_standard_args(Xsimd
  REQUIRED_VARS Xsimd_INCLUDE_DIR
  VERSION_VAR Xsimd_VERSION
  REASON_FAILURE_MESSAGE "xsimd/xsimd.hpp was looked for in '${xsimd_folder}'. Install it with \
`pip install 'pythran>=0.19,<0.20'` in the active Python environment (${python_package_asked}), or pass \
-DXSIMD_DIR=<folder that contains xsimd/xsimd.hpp>.")

if(Xsimd_FOUND AND NOT TARGET Xsimd::Xsimd)
  add_library(Xsimd::Xsimd INTERFACE IMPORTED)
  target_include_directories(Xsimd::Xsimd SYSTEM INTERFACE "${Xsimd_INCLUDE_DIR}")
endif()
