"""Output files: checked before the work, written as a whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

from ._arguments import CommandError


def advice(option: str) -> str:
    return f"choose another place with {option}"


def unfinished(path: Path) -> Path:
    """A new name beside `path`."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}.part")


def destination(text: str, suffix: str, option: str = "--output") -> Path:
    """The file that `text`, the value of `option`, names, after finding out that it can be written.

    Raises
    ------
    CommandError
        If it has another suffix, cannot be written, or is something else than a file.
    """
    path = Path(os.path.realpath(text))  # of a symbolic link, the file it points to
    if path.suffix.lower() != suffix:
        raise CommandError(
            f"{option} makes a {suffix} file, not {text!r}; give it a name that ends in {suffix}"
        )
    if path.exists() and not path.is_file():
        raise CommandError(f"{text!r} is not a file; {advice(option)}")
    if path.exists() and not os.access(path, os.W_OK):
        raise CommandError(f"{text!r} is read-only; {advice(option)}")
    probe = unfinished(path)
    try:
        probe.touch(exist_ok=False)
        probe.unlink()
    except OSError as error:
        raise CommandError(f"cannot write {text!r}: {error.strerror}; {advice(option)}") from error
    return path


def write(path: Path, content: bytes, option: str = "--output") -> None:
    """Put `content` in the place of `path` in one step.

    Raises
    ------
    CommandError
        If the file system refuses.
    """
    part = unfinished(path)
    try:
        with open(part, "xb") as file:
            file.write(content)
        os.replace(part, path)
    except OSError as error:
        raise CommandError(
            f"cannot write {str(path)!r}: {error.strerror}; {advice(option)}"
        ) from error
    finally:
        part.unlink(missing_ok=True)
