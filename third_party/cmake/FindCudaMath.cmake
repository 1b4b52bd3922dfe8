# Headers of cuFFT and cuBLAS (NVIDIA's licence; never shipped): target CudaMath::CudaMath, and
# CudaMath_LIBRARY_DIR. The libraries are not linked but loaded at the first need.
#
# CUDA_MATH_DIR names a folder with include/ and lib/; left empty, a CUDA toolkit that has both headers
# is taken, else the pip packages nvidia-cufft and nvidia-cublas.
include(FindPackageHandleStandardArgs)
include("${CMAKE_CURRENT_LIST_DIR}/PythonPackage.cmake")

python_package_dir(nvidia_folder nvidia)
if(CUDA_MATH_DIR)
  set(cuda_math_folders "${CUDA_MATH_DIR}")
else()
  set(cuda_math_folders ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
  list(TRANSFORM cuda_math_folders REPLACE "/include/?$" "")
  if(nvidia_folder)
    list(APPEND cuda_math_folders "${nvidia_folder}/cu13")
  endif()
endif()

unset(CudaMath_INCLUDE_DIR)
foreach(folder IN LISTS cuda_math_folders)
  if(NOT CudaMath_INCLUDE_DIR AND EXISTS "${folder}/include/cufft.h"
     AND EXISTS "${folder}/include/cublas_v2.h")
    set(CudaMath_INCLUDE_DIR "${folder}/include")
    set(CudaMath_LIBRARY_DIR "${folder}/lib")
  endif()
endforeach()

list(JOIN cuda_math_folders "' and '" cuda_math_places)
find_package_handle_standard_args(CudaMath
  REQUIRED_VARS CudaMath_INCLUDE_DIR
  REASON_FAILURE_MESSAGE "include/cufft.h and include/cublas_v2.h were looked for in \
'${cuda_math_places}'. Install them with `pip install --no-deps 'nvidia-cufft==12.0.*' \
'nvidia-cublas==13.1.*'` for ${python_package_asked}, or pass -DCUDA_MATH_DIR=<folder>.")

if(CudaMath_FOUND AND NOT TARGET CudaMath::CudaMath)
  add_library(CudaMath::CudaMath INTERFACE IMPORTED)
  target_include_directories(CudaMath::CudaMath SYSTEM INTERFACE "${CudaMath_INCLUDE_DIR}")
endif()
