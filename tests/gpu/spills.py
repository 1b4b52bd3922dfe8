"""Fail when the compiler's report has a kernel that keeps registers or arrays in device memory.

    cmake --build build/cuda --target convbasis_cuda | tee log      # compiled with -Xptxas -v
    python tests/gpu/spills.py log

Registers that do not fit ("spills") and arrays that are not indexed by constants ("stack") live in
local memory, which is the memory of the device.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

ENTRY = re.compile(r"Compiling entry function '(\w+)' for '(\w+)'")
MEMORY = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
REGISTERS = re.compile(r"Used (\d+) registers")


def read_report(text: str) -> list[tuple[str, int, int, int]]:
    """Name with its architecture, registers, bytes of stack and of spills of each kernel."""
    entries = list(ENTRY.finditer(text))
    ends = [entry.start() for entry in entries[1:]] + [len(text)]
    kernels = []
    for entry, end in zip(entries, ends, strict=True):
        part = text[entry.end() : end]
        memory, registers = MEMORY.search(part), REGISTERS.search(part)
        if memory is None or registers is None:
            raise SystemExit(f"the report of {entry[1]} is not complete")
        stack, stores, loads = (int(number) for number in memory.groups())
        name = f"{entry[1]} ({entry[2]})"
        kernels.append((name, int(registers[1]), stack, stores + loads))
    return kernels


def readable(text: str) -> str:
    """The text with C++ names as they are written, where c++filt is installed."""
    if shutil.which("c++filt") is None:
        return text
    return subprocess.run(["c++filt"], input=text, capture_output=True, text=True).stdout


def main(path: str) -> int:
    kernels = read_report(Path(path).read_text())
    if not kernels:
        print(f"{path} names no kernel; was it compiled with -Xptxas -v?")
        return 1
    bad = [kernel for kernel in kernels if kernel[2] or kernel[3]]
    for name, registers, stack, spills in bad:
        print(readable(f"{name}: {registers} registers, {stack} bytes stack, {spills} of spills"))
    most = max(registers for _, registers, _, _ in kernels)
    print(f"{len(kernels)} kernels, at most {most} registers, {len(bad)} use local memory")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
