"""What the sources have in common: finding a folder, and turning a reader's complaints into ours."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from isthmus.data.events import Events
from isthmus.data.split import Split
from isthmus.errors import SourceError

ENVIRONMENT = "ISTHMUS_DATA"


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a source gives.

    Attributes:
        events: the events with their user and item tables.
        split: the data set's own split, with its candidate lists; None when it has none.
    """

    events: Events
    split: Split | None = None


def find_folder(path: str | Path | None, names: Sequence[str], origin: str) -> Path:
    """The folder of a public data set.

    Args:
        path: the folder, or None to search ``$ISTHMUS_DATA/<name>``.
        names: names the folder may have there.
        origin: where to get the data, for the message.

    Raises:
        SourceError: there is no such folder.
    """
    if path is not None:
        if not Path(path).is_dir():
            raise SourceError(
                f"{path} is not a folder", f"a folder with the files of {names[0]}", f"check the path, or get the data: {origin}"
            )
        return Path(path)
    root = os.environ.get(ENVIRONMENT)
    if not root:
        raise SourceError(
            f"no path was given for {names[0]}, and the environment variable {ENVIRONMENT} is not set",
            f"a path, or {ENVIRONMENT} naming a folder that holds {' or '.join(names)}",
            f"get the data: {origin}",
        )
    for name in names:
        if (Path(root) / name).is_dir():
            return Path(root) / name
    looked = ", ".join(str(Path(root) / name) for name in names)
    raise SourceError(f"no folder {looked}", f"the files of {names[0]} in one of them", f"get the data: {origin}")


def find_file(folder: Path, names: Sequence[str], origin: str) -> Path:
    """The first of the named files that exists in ``folder``.

    Raises:
        SourceError: none does.
    """
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise SourceError(f"{folder} holds none of {', '.join(names)}", "one of these files", f"get the data: {origin}")


@contextmanager
def reading(what: str | Path) -> Iterator[None]:
    """Turns the complaints of a file reader into ``SourceError``; Isthmus' own errors pass.

    Args:
        what: the file, for the message.
    """
    try:
        yield
    except FileNotFoundError:
        raise SourceError(f"{what} is missing", "an existing file", "check the path") from None
    except (pl.exceptions.PolarsError, OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
        raise SourceError(
            f"{what} cannot be read ({first})", "a whole, undamaged file", "copy or make it again: it may be truncated or of another format"
        ) from error
