#pragma once

/// The version, written here and nowhere else: CMake and pyproject.toml read this line.
#define CONVBASIS_VERSION "0.1.0"
