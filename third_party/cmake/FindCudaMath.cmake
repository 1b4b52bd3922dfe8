# cuFFT and cuBLAS (NVIDIA's licence; never shipped): targets CudaMath::cuFFT and CudaMath::cuBLAS.
#
# CUDA_MATH_DIR names a folder with include/ and lib/; left empty, a CUDA toolkit that has both is
# taken, else the pip packages nvidia-cufft and nvidia-cublas. Wheels carry versioned names only
# (libcufft.so.12), so each library is an imported target of that very file.
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
    foreach(name IN ITEMS cufft cublas cublasLt)
      unset(CudaMath_${name})
      file(GLOB found "${folder}/lib/lib${name}.so*" "${folder}/lib64/lib${name}.so*")
      if(found)
        list(GET found 0 CudaMath_${name})
      endif()
    endforeach()
  endif()
endforeach()

list(JOIN cuda_math_folders "' and '" cuda_math_places)
find_package_handle_standard_args(CudaMath
  REQUIRED_VARS CudaMath_cufft CudaMath_cublas CudaMath_cublasLt CudaMath_INCLUDE_DIR
  REASON_FAILURE_MESSAGE "include/cufft.h, include/cublas_v2.h and the libraries were looked for in \
'${cuda_math_places}'. Install them with `pip install --no-deps 'nvidia-cufft==12.0.*' \
'nvidia-cublas==13.1.*'` for ${python_package_asked}, or pass -DCUDA_MATH_DIR=<folder>.")

if(CudaMath_FOUND AND NOT TARGET CudaMath::cuFFT)
  foreach(pair IN ITEMS cuFFT:cufft cuBLAS:cublas)
    string(REPLACE ":" ";" pair "${pair}")
    list(GET pair 0 target)
    list(GET pair 1 name)
    cmake_path(GET CudaMath_${name} FILENAME soname)
    add_library(CudaMath::${target} SHARED IMPORTED)
    set_target_properties(CudaMath::${target} PROPERTIES
      IMPORTED_LOCATION "${CudaMath_${name}}" IMPORTED_SONAME "${soname}")
    target_include_directories(CudaMath::${target} SYSTEM INTERFACE "${CudaMath_INCLUDE_DIR}")
  endforeach()
  set_target_properties(CudaMath::cuBLAS PROPERTIES
    IMPORTED_LINK_DEPENDENT_LIBRARIES "${CudaMath_cublasLt}")
endif()
