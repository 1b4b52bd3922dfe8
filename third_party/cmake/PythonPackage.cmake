# python_package_dir(<variable> <package>): folder of an installed Python package, "" if there is none.
#
# The package is not imported. The interpreter is Python_EXECUTABLE when set (pip's isolated build sets
# it), then that of an active virtual environment, then the first python3 on PATH. It is
# looked up anew at each configuration, so activating another environment needs no clean build.
# python_package_asked names it, for messages.
if(Python_EXECUTABLE)
  set(python_package_asked "${Python_EXECUTABLE}")
elseif(DEFINED ENV{VIRTUAL_ENV} AND EXISTS "$ENV{VIRTUAL_ENV}/bin/python3")
  set(python_package_asked "$ENV{VIRTUAL_ENV}/bin/python3")
else()
  unset(python_package_asked)
  find_program(python_package_asked NAMES python3 python NO_CACHE)
endif()

function(python_package_dir variable package)
  set(folder "")
  if(python_package_asked)
    execute_process(
      COMMAND "${python_package_asked}" -c
              "import importlib.util as u; s = u.find_spec('${package}'); print(list(s.submodule_search_locations)[0] if s else '', end='')"
      OUTPUT_VARIABLE folder ERROR_QUIET)
  endif()
  if(folder)
    cmake_path(CONVERT "${folder}" TO_CMAKE_PATH_LIST folder)
  endif()
  set(${variable} "${folder}" PARENT_SCOPE)
endfunction()
