"""``convbasis info``: versions, and what this build can do on this machine."""

from __future__ import annotations

import argparse
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from .. import _validate, build_info, cuda_available
from ._arguments import HELP_STYLE, add_json, print_json

#: Packages that are used when they are there, and for what.
OPTIONAL = {
    "matplotlib": "pictures of 'convbasis demo' and 'bench'",
    "rich": "progress bars",
    "ml_dtypes": "bfloat16 arrays",
    "scipy": "FFT methods to compare with in 'convbasis bench'",
    "torch": "convbasis.torch, and the baseline of 'convbasis bench' and 'demo'",
    "transformers": "convbasis.transformers",
}

EPILOG = """\
examples:
  convbasis info
  convbasis info --json > machine.json     to go with a bug report or a timing
"""


def add_to(commands: Any) -> None:
    """Add the subcommand to the command's parser."""
    parser = commands.add_parser(
        "info",
        help="versions, compiler, instruction sets, libraries, cores",
        description="Print what this build can do and where it runs.",
        epilog=EPILOG,
        formatter_class=HELP_STYLE,
    )
    add_json(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Carry out the subcommand; the exit code."""
    content = gather()
    if arguments.json:
        print_json(content)
    else:
        print("\n".join(text(content)))
    return 0


def gather() -> dict[str, Any]:
    """Everything that is printed."""
    build = build_info()
    return {
        "version": build["version"],
        "build": build,
        "cuda_available": cuda_available(),
        "location": str(Path(__file__).parents[1].absolute()),
        "python": platform.python_version(),
        "executable": sys.executable,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "processor": processor(),
        "cores": _validate.threads("info", None),
        "packages": {name: version_of(name) for name in OPTIONAL},
    }


def processor() -> str:
    """The model of the processor, or its architecture where the system does not tell."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def version_of(package: str) -> str | None:
    """The installed version of `package`, without importing it; None where it is missing."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def text(content: dict[str, Any]) -> list[str]:
    """The lines for people."""
    build = content["build"]
    standard = f"C++{build['cxx_standard'] // 100 % 100}"
    if not build["cuda"]:
        cuda = "not in this build"
    else:
        cuda = "usable" if content["cuda_available"] else "built in, but no GPU is usable"
    rows = {
        "location": content["location"],
        "compiler": f"{build['compiler']}, {standard}",
        "SIMD": f"{build['simd']} used; available: {', '.join(build['simd_available'])}",
        "BLAS": build["blas"],
        "FFT": build["fft"],
        "CUDA": cuda,
        "processor": content["processor"],
        "cores": f"{content['cores']} usable by this process",
        "system": content["platform"],
        "Python": content["python"],
        "NumPy": content["numpy"],
    }
    packages = {
        name: version or f"not installed (for {OPTIONAL[name]})"
        for name, version in content["packages"].items()
    }
    width = max(map(len, [*rows, *packages]))
    return [
        f"convbasis {content['version']}",
        *(f"  {name:{width}}  {entry}" for name, entry in rows.items()),
        "optional packages",
        *(f"  {name:{width}}  {entry}" for name, entry in packages.items()),
    ]
