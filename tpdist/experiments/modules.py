"""What the programs of this room share, `tpdist bench` and `plan` and those that are called by `python -m`."""

import argparse
import errno
import os
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tpdist.errors import TpdistError


def json_file(text: str) -> Path:
    """The type of `--json FILE`: what cannot be written is refused before minutes of measuring, not after."""
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{text} is a directory; name a file in it")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"there is no directory {path.parent}; make it first")
    try:
        if not path.exists():
            tempfile.TemporaryFile(dir=path.parent).close()
        elif not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        raise argparse.ArgumentTypeError(f"{text} cannot be written: {error.strerror}; name another file") from error
    return path


def write_json_file(file: Path | None, value: Any) -> None:
    """`--json FILE`, where it was given. Raises TpdistError where it cannot be written after all."""
    from tpdist.training.files import dump_json

    try:
        if file is not None:
            dump_json(file, value)
    except OSError as error:
        raise TpdistError(f"--json {file}: cannot be written: {error.strerror}") from error


def ended(main: Callable[[], None]) -> int:
    """The exit code of a program: an error that the user can mend is one line."""
    try:
        main()
    except TpdistError as error:
        print(f"tpdist: {error}", file=sys.stderr)
        return error.exit_code
    return 0
