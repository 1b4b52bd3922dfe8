# PocketFFT (C++ header, BSD-3-Clause): target PocketFFT::PocketFFT, include as <pocketfft.hpp>.
#
# POCKETFFT_DIR names a folder with pocketfft.hpp or pocketfft_hdronly.h; left empty, the header comes
# from the pip package pythran. Results are not cached: an isolated build's folder is gone next time.
include(FindPackageHandleStandardArgs)
include("${CMAKE_CURRENT_LIST_DIR}/PythonPackage.cmake")

if(POCKETFFT_DIR)
  set(pocketfft_folders "${POCKETFFT_DIR}" "${POCKETFFT_DIR}/pocketfft")
else()
  python_package_dir(pythran_dir pythran)
  if(pythran_dir)
    set(pocketfft_folders "${pythran_dir}/pythonic/numpy/fft")
  else()
    set(pocketfft_folders "the package pythran, which is not installed")
  endif()
endif()

unset(PocketFFT_INCLUDE_DIR)
unset(pocketfft_header)
foreach(folder IN LISTS pocketfft_folders)
  foreach(name IN ITEMS pocketfft.hpp pocketfft_hdronly.h pocketfft_hdronly.hpp)
    if(NOT pocketfft_header AND EXISTS "${folder}/${name}")
      set(PocketFFT_INCLUDE_DIR "${folder}")
      set(pocketfft_header "${folder}/${name}")
    endif()
  endforeach()
endforeach()

list(JOIN pocketfft_folders "' and '" pocketfft_places)
find_package_handle_standard_args(PocketFFT
  REQUIRED_VARS PocketFFT_INCLUDE_DIR
  REASON_FAILURE_MESSAGE "pocketfft.hpp was looked for in '${pocketfft_places}'. Install it with \
`pip install 'pythran>=0.19,<0.20'` for ${python_package_asked} (the build also wants \
'scipy-openblas32>=0.3.33'), name another interpreter by -DPython_EXECUTABLE=<path>, or pass \
-DPOCKETFFT_DIR=<folder of pocketfft.hpp or pocketfft_hdronly.h>.")

if(PocketFFT_FOUND AND NOT TARGET PocketFFT::PocketFFT)
  # A header of our own that forwards to the one found: its name is then always the same, and none of
  # its neighbours gets onto the include path.
  set(pocketfft_forward "${CMAKE_CURRENT_BINARY_DIR}/third_party/pocketfft")
  file(CONFIGURE OUTPUT "${pocketfft_forward}/pocketfft.hpp"
       CONTENT "#pragma once\n#include \"@pocketfft_header@\"\n" @ONLY)
  add_library(PocketFFT::PocketFFT INTERFACE IMPORTED)
  target_include_directories(PocketFFT::PocketFFT SYSTEM INTERFACE "${pocketfft_forward}")
endif()
