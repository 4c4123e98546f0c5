"""Every error Isthmus raises on purpose, as one small tree.

::

    IsthmusError
    ├── DataError           the data are not what was declared
    │   ├── ColumnError     a column is missing, or has the wrong type
    │   ├── LabelError      a label outside what the task allows, or a domain without positives
    │   ├── SplitError      a split that cannot be made, or that does not belong to these events
    │   └── SourceError     a file or folder is missing, truncated or not what it should be
    ├── ConfigError         a recipe, an option or a name that does not exist (tells the nearest one)
    ├── FitError            training cannot go on: the loss is not a number
    │   └── FollowerError   the first of several processes failed, and tells why itself
    ├── CheckpointError     a run or checkpoint that belongs to another schema, or is damaged
    ├── StorageError        the disk is full, or a folder cannot be written
    ├── HistoryError        the store of live histories does not answer
    └── ServiceError        a running service refuses, fails or does not answer

A message has three parts: what came, what was expected, what to do.  Build it with
``SomeError(came, expected, do)``; the parts stay readable as attributes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class IsthmusError(Exception):
    """Base of all errors that Isthmus raises on purpose.

    Args:
        came: what was found, with the offending value and its place.
        expected: what would have been right.
        do: the next step for the user.
    """

    def __init__(self, came: str, expected: str = "", do: str = "") -> None:
        self.came, self.expected, self.do = came, expected, do
        parts = [came, f"expected: {expected}" if expected else "", f"to do: {do}" if do else ""]
        super().__init__("\n  ".join(part for part in parts if part))


class DataError(IsthmusError):
    """The data are not what was declared."""


class ColumnError(DataError):
    """A column is missing, or has the wrong type."""


class LabelError(DataError):
    """A label outside what the task allows, or a domain without positives."""


class SplitError(DataError):
    """A split that cannot be made, or that does not belong to these events."""


class SourceError(DataError):
    """A file or folder is missing, truncated or not what it should be."""


class ConfigError(IsthmusError):
    """A recipe, an option or a name that does not exist."""


class FitError(IsthmusError):
    """Training cannot go on: the loss is not a number."""


class FollowerError(FitError):
    """The first of the processes that train together failed; it tells why itself."""


class CheckpointError(IsthmusError):
    """A run or checkpoint that belongs to another schema, or is damaged."""


class StorageError(IsthmusError):
    """The disk is full, or a folder cannot be written."""


class HistoryError(IsthmusError):
    """The store of live histories does not answer."""


class ServiceError(IsthmusError):
    """A running service refuses, fails or does not answer.

    Args:
        came, expected, do: see ``IsthmusError``.
        status: of HTTP, or None where no answer came.
        field: of the request that was wrong, where it was one.
    """

    def __init__(self, came: str, expected: str = "", do: str = "", *, status: int | None = None, field: str | None = None) -> None:
        super().__init__(came, expected, do)
        self.status, self.field = status, field


def nearest(name: str, known: Iterable[str]) -> str:
    """The hint ``did you mean 'x'?``, or the list of known names when none is near."""
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    return f"did you mean {close[0]!r}?" if close else f"use one of: {', '.join(names)}"
