# BLAS and LAPACK of the system with the C interface cblas.h and unprefixed symbols: target
# SystemBLAS::SystemBLAS. CMake's own BLA_VENDOR, BLAS_LIBRARIES and LAPACK_LIBRARIES choose which.
include(FindPackageHandleStandardArgs)

find_package(BLAS QUIET)
find_package(LAPACK QUIET)
find_path(SystemBLAS_INCLUDE_DIR cblas.h PATH_SUFFIXES openblas openblas-pthread)

find_package_handle_standard_args(SystemBLAS
  REQUIRED_VARS BLAS_FOUND LAPACK_FOUND SystemBLAS_INCLUDE_DIR
  REASON_FAILURE_MESSAGE "Install a development package of OpenBLAS (Debian: libopenblas-dev), or \
name one with -DBLA_VENDOR=..., -DCMAKE_PREFIX_PATH=... and -DSystemBLAS_INCLUDE_DIR=<folder of cblas.h>.")

if(SystemBLAS_FOUND AND NOT TARGET SystemBLAS::SystemBLAS)
  add_library(SystemBLAS::SystemBLAS INTERFACE IMPORTED)
  target_link_libraries(SystemBLAS::SystemBLAS INTERFACE LAPACK::LAPACK BLAS::BLAS)
  target_include_directories(SystemBLAS::SystemBLAS SYSTEM INTERFACE "${SystemBLAS_INCLUDE_DIR}")
endif()
