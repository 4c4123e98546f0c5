"""Files appear whole or not at all: every write goes to a temporary neighbour and is renamed into place.

Processes that share a folder claim their pieces of the work.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from isthmus.errors import SourceError, StorageError

try:
    import fcntl
except ImportError:  # Windows has none: there a folder is one process's
    fcntl = None


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A temporary path beside ``path``; renamed over it when the block ends well, deleted when it does not.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    path = Path(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        os.close(handle)
    temporary = Path(name)
    try:
        with storage_errors(path):
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: str | Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary folder beside ``path``; renamed to it when the block ends well, deleted when it does not.

    Raises:
        StorageError: ``path`` exists and ``overwrite`` is False, the disk is full, or the parent cannot be written.
    """
    path = Path(path)
    if path.exists() and not overwrite:
        raise StorageError(f"{path} exists already", "a path that does not exist", "choose another one, or allow overwriting")
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        with storage_errors(path):
            yield temporary
            temporary.chmod(0o755)
            if path.exists():
                old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
                os.replace(path, old / "old")
                os.replace(temporary, path)
                shutil.rmtree(old, ignore_errors=True)
            else:
                os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def claim(path: str | Path, *, wait: bool = False) -> Iterator[bool]:
    """Whether this process alone may work on ``path`` in the block; it need not exist.

    A claim ends with its process, however that ends.

    Args:
        path: a file or folder; the claim is a file beside it, ``.<name>.claim``.
        wait: until nobody else has it.

    Raises:
        StorageError: the folder cannot be written.
    """
    path = Path(path)
    beside = path.with_name(f".{path.name}.claim")
    with storage_errors(beside):
        beside.parent.mkdir(parents=True, exist_ok=True)
        file = open(beside, "w")  # noqa: SIM115
    with file:
        yield fcntl is None or _locked(file.fileno(), wait)


def sweep(folder: Path, *names: str) -> None:
    """Removes what killed processes left of files and folders that they were writing.

    Args:
        folder: where; nobody else writes there.
        names: of what was being written; patterns, as in ``glob``.
    """
    for name in names:
        for left in folder.glob(f".{name}.????????"):
            if left.is_dir():
                shutil.rmtree(left, ignore_errors=True)
            else:
                left.unlink(missing_ok=True)


def write_json(path: str | Path, value: Any) -> None:
    """Writes JSON, whole or not at all.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    text = json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Reads JSON.

    Raises:
        SourceError: the file is missing or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise SourceError(f"{path} is missing", "a file that Isthmus wrote", "check the path, or make it again") from None
    except (ValueError, OSError) as error:
        raise SourceError(f"{path} cannot be read ({error})", "a JSON file that Isthmus wrote", "make it again") from error


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turns the system's refusals to write into ``StorageError``; other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise StorageError(
                f"the disk is full: {path}", "free space", "free some, or choose another folder; nothing half-written is left"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR):
            raise StorageError(
                f"{path} cannot be written ({error.strerror})", "a folder you may write to", "choose another folder"
            ) from error
        raise


def _locked(file: int, wait: bool) -> bool:
    assert fcntl is not None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    return True


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())
