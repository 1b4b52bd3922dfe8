# `cmake --install <build> --component native`: headers, library, its BLAS, and the package that
# find_package(convbasis CONFIG) finds. The Python module is the component `python`.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)
set(config_dir "${CMAKE_INSTALL_LIBDIR}/cmake/convbasis")

set_target_properties(convbasis PROPERTIES INSTALL_RPATH "$<IF:$<PLATFORM_ID:Darwin>,@loader_path,$ORIGIN>")
install(TARGETS convbasis EXPORT convbasisTargets
  ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}" COMPONENT native
  LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}" COMPONENT native NAMELINK_COMPONENT native
  RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}" COMPONENT native
  FILE_SET HEADERS DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" COMPONENT native)
install(EXPORT convbasisTargets NAMESPACE convbasis:: DESTINATION "${config_dir}" COMPONENT native)

set(CONVBASIS_BLAS_FILE "")
if(CONVBASIS_BLAS STREQUAL "scipy-openblas")
  cmake_path(GET ScipyOpenBLAS_LIBRARY FILENAME CONVBASIS_BLAS_FILE)
  install(FILES "${ScipyOpenBLAS_LIBRARY}" DESTINATION "${CMAKE_INSTALL_LIBDIR}" COMPONENT native)
else()
  install(FILES "${PROJECT_SOURCE_DIR}/third_party/cmake/FindSystemBLAS.cmake"
          DESTINATION "${config_dir}" COMPONENT native)
endif()

configure_package_config_file("${CMAKE_CURRENT_LIST_DIR}/convbasisConfig.cmake.in"
  "${PROJECT_BINARY_DIR}/convbasisConfig.cmake"
  INSTALL_DESTINATION "${config_dir}" PATH_VARS CMAKE_INSTALL_LIBDIR)
write_basic_package_version_file("${PROJECT_BINARY_DIR}/convbasisConfigVersion.cmake"
  COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/convbasisConfig.cmake"
              "${PROJECT_BINARY_DIR}/convbasisConfigVersion.cmake"
        DESTINATION "${config_dir}" COMPONENT native)

file(GLOB notices "${PROJECT_SOURCE_DIR}/third_party/licenses/*.txt")
install(FILES "${PROJECT_SOURCE_DIR}/LICENSE" ${notices}
        DESTINATION "${CMAKE_INSTALL_DATADIR}/licenses/convbasis" COMPONENT native)
