"""Rules about the files themselves."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAX_LINES = 400
FOLDERS = (
    "csrc",
    "python",
    "tests",
    "examples",
    "benchmarks",
    "docs",
    "cmake",
    "third_party/cmake",
)
SUFFIXES = {".h", ".cpp", ".cu", ".py", ".pyi", ".cmake"}


def sources(*folders, suffixes=SUFFIXES):
    """Source files below the given folders, relative to the root."""
    found = [
        path.relative_to(ROOT)
        for folder in folders
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in suffixes and path.is_file()
    ]
    assert found, f"no sources below {folders}"
    return found


def test_no_file_is_longer_than_400_lines():
    lines = {str(path): (ROOT / path).read_text().count("\n") for path in sources(*FOLDERS)}
    assert {name: count for name, count in lines.items() if count > MAX_LINES} == {}


@pytest.mark.parametrize(
    ("folder", "list_file", "suffixes"),
    [
        ("csrc", "csrc/CMakeLists.txt", {".cpp", ".cu"}),
        ("csrc/include", "csrc/CMakeLists.txt", {".h"}),
        ("csrc/bindings", "csrc/bindings/CMakeLists.txt", {".cpp"}),
    ],
)
def test_every_native_source_is_built(folder, list_file, suffixes):
    base = (ROOT / list_file).parent
    listed = (ROOT / list_file).read_text().split()
    files = [(ROOT / path).relative_to(base) for path in sources(folder, suffixes=suffixes)]
    if folder == "csrc":
        files = [path for path in files if path.parts[0] != "bindings"]
    missing = [
        str(path) for path in files if str(path) not in {word.rstrip(")") for word in listed}
    ]
    assert missing == []


def test_every_cpp_test_is_listed():
    for folder, prefix in (("tests/cpp", "test_"), ("tests/cpp/cuda", "test_cuda_")):
        listed = (ROOT / folder / "CMakeLists.txt").read_text()
        topics = {path.stem.removeprefix(prefix) for path in (ROOT / folder).glob("test_*.cpp")}
        assert topics
        assert topics <= set(re.findall(r"\w+", listed))


def test_source_map_names_every_file():
    maps = ("csrc/README.md", "csrc/cuda/README.md")
    text = "".join((ROOT / path).read_text() for path in maps)
    names = set(re.findall(r"[\w.]+", text))
    missing = [
        str(path)
        for path in sources("csrc", suffixes={".h", ".cpp", ".cu"})
        if not {path.name, path.stem} & names
    ]
    assert missing == []


def test_public_headers_include_only_the_standard_library_and_each_other():
    pattern = re.compile(r'#include ["<]([^">]+)[">]')
    foreign = {
        (path.name, name)
        for path in sources("csrc/include", suffixes={".h"})
        for name in pattern.findall((ROOT / path).read_text())
        if ("/" in name or "." in name) and not name.startswith("convbasis/")
    }
    assert foreign == set()


def test_layers_do_not_point_back():
    layers = {"include": 0, "core": 1, "cpu": 2, "cuda": 2, "no_cuda": 2, "bindings": 3}
    pattern = re.compile(r'#include "(\w+)/')
    wrong = [
        (str(path), target)
        for path in sources("csrc", suffixes={".h", ".cpp", ".cu"})
        for target in pattern.findall((ROOT / path).read_text())
        if target in layers and target != path.parts[1] and layers[target] >= layers[path.parts[1]]
    ]
    assert wrong == []


def test_version_is_written_once():
    import convbasis

    line = (ROOT / "csrc/include/convbasis/version.h").read_text()
    assert f'#define CONVBASIS_VERSION "{convbasis.__version__}"' in line


def test_what_judging_costs_is_what_is_judged():
    from convbasis import _judged_blocks

    core = (ROOT / "csrc/cpu/calibrate.cpp").read_text()
    for name, judged in [
        ("kRowsPerJudged", _judged_blocks.ROWS_PER_JUDGED),
        ("kMostJudged", _judged_blocks.MOST_JUDGED),
    ]:
        (value,) = re.findall(rf"\b{name} = (\d+)", core)
        assert int(value) == judged
