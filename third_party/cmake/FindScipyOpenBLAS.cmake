# OpenBLAS with LAPACK as the pip package scipy-openblas32 ships it (BSD-3-Clause; 32-bit integers,
# every symbol prefixed `scipy_`): target ScipyOpenBLAS::ScipyOpenBLAS, include as <cblas.h>.
#
# SCIPY_OPENBLAS_DIR names a folder with include/ and lib/; left empty, the pip package's is used.
# Sets ScipyOpenBLAS_LIBRARY, the shared library, which has to travel with whatever links it.
include(FindPackageHandleStandardArgs)
include("${CMAKE_CURRENT_LIST_DIR}/PythonPackage.cmake")

if(SCIPY_OPENBLAS_DIR)
  set(openblas_folder "${SCIPY_OPENBLAS_DIR}")
else()
  python_package_dir(openblas_folder scipy_openblas32)
endif()

unset(ScipyOpenBLAS_INCLUDE_DIR)
unset(ScipyOpenBLAS_LIBRARY)
unset(ScipyOpenBLAS_VERSION)
if(EXISTS "${openblas_folder}/include/cblas.h")
  set(ScipyOpenBLAS_INCLUDE_DIR "${openblas_folder}/include")
  file(STRINGS "${openblas_folder}/include/openblas_config.h" openblas_line
       REGEX "#define OPENBLAS_VERSION ")
  string(REGEX MATCH "[0-9]+(\\.[0-9]+)+" ScipyOpenBLAS_VERSION "${openblas_line}")
endif()
foreach(suffix IN ITEMS .so .dylib)
  if(EXISTS "${openblas_folder}/lib/libscipy_openblas${suffix}")
    set(ScipyOpenBLAS_LIBRARY "${openblas_folder}/lib/libscipy_openblas${suffix}")
  endif()
endforeach()

find_package_handle_standard_args(ScipyOpenBLAS
  REQUIRED_VARS ScipyOpenBLAS_LIBRARY ScipyOpenBLAS_INCLUDE_DIR
  VERSION_VAR ScipyOpenBLAS_VERSION
  REASON_FAILURE_MESSAGE "include/cblas.h and lib/libscipy_openblas.* were looked for in \
'${openblas_folder}'. Install them with `pip install 'scipy-openblas32>=0.3.33'` in the active \
Python environment (${python_package_asked}), or pass -DSCIPY_OPENBLAS_DIR=<folder>, or use a system \
library with -DCONVBASIS_BLAS=system.")

if(ScipyOpenBLAS_FOUND AND NOT TARGET ScipyOpenBLAS::ScipyOpenBLAS)
  cmake_path(GET ScipyOpenBLAS_LIBRARY FILENAME openblas_soname)
  add_library(ScipyOpenBLAS::ScipyOpenBLAS SHARED IMPORTED)
  set_target_properties(ScipyOpenBLAS::ScipyOpenBLAS PROPERTIES
    IMPORTED_LOCATION "${ScipyOpenBLAS_LIBRARY}"
    IMPORTED_SONAME "${openblas_soname}")
  target_include_directories(ScipyOpenBLAS::ScipyOpenBLAS SYSTEM INTERFACE
    "${ScipyOpenBLAS_INCLUDE_DIR}")
  target_compile_definitions(ScipyOpenBLAS::ScipyOpenBLAS INTERFACE CONVBASIS_BLAS_SCIPY)
endif()
