"""Files of arrays: .npz with a format and a version, written as a whole or not at all."""

from __future__ import annotations

import os
import secrets
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from ._validate import wrong

FORMAT = "convbasis.ConvBasis"
VERSION = 1
FIELDS = ("starts", "num_bases", "kernels", "num_columns", "complete")
OPTIONAL = ("scale",)  # absent when not known, and unread by programs that do not know it


def save(path: str | os.PathLike[str], arrays: Mapping[str, Any]) -> None:
    """Write to a file beside `path`, then put it in its place in one step; None is left out."""
    known = {name: array for name, array in arrays.items() if array is not None}
    path = os.fspath(path)
    unfinished = f"{path}.{secrets.token_hex(8)}.part"
    try:
        with open(unfinished, "xb") as file:
            np.savez(file, format=FORMAT, version=VERSION, **known)
        os.replace(unfinished, path)
    except BaseException:
        if os.path.exists(unfinished):
            os.unlink(unfinished)
        raise


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The arrays of a file written by `save`. Pickled objects are refused, not executed."""
    expected = f"a file written by ConvBasis.save (format version {VERSION})"
    try:
        with open(path, "rb") as stream, np.load(stream, allow_pickle=False) as file:
            content = {name: file[name] for name in file.files}
    except (ValueError, EOFError, zipfile.BadZipFile, AttributeError, TypeError) as error:
        raise wrong(
            "ConvBasis.load",
            "path",
            "is not a file of arrays",
            expected,
            repr(os.fspath(path)),
        ) from error
    if str(content.get("format")) != FORMAT or not set(FIELDS) <= set(content):
        raise wrong(
            "ConvBasis.load",
            "path",
            "holds something else",
            expected,
            f"{os.fspath(path)!r} with the arrays {sorted(content)}",
        )
    if int(content["version"]) != VERSION:
        raise wrong(
            "ConvBasis.load",
            "path",
            "has another format version",
            str(VERSION),
            int(content["version"]),
        )
    arrays = {name: content[name] for name in FIELDS}
    arrays.update({name: content[name][()] for name in OPTIONAL if name in content})
    return {**arrays, "num_columns": int(arrays["num_columns"])}
