"""``Registry``: what lies in a package's folder, one file each, found by its file name."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from isthmus.errors import ConfigError, nearest

T = TypeVar("T")


class Registry:
    """The public files of a package.

    Listing imports nothing; a file is imported when it is asked for.

    Args:
        package: its dotted name (``__name__``).
        file: its ``__init__.py`` (``__file__``).
        kind: what a file holds, in one word, for messages.
        expected: what a name should be, for messages; None: the list of the names.
    """

    def __init__(self, package: str, file: str, kind: str, expected: str | None = None) -> None:
        self.package, self.folder, self.kind, self.expected = package, Path(file).parent, kind, expected

    def available(self) -> dict[str, Path]:
        """Names and files in alphabetical order; those that begin with an underscore are private."""
        return {file.stem: file for file in sorted(self.folder.glob("[!_]*.py"))}

    def module(self, name: str, asked: str | None = None) -> ModuleType:
        """The module of a name.

        Args:
            name: of a file, without its ending.
            asked: what the user wrote, when it is more than the name.

        Raises:
            ConfigError: no such file; tells the nearest name.
        """
        known = self.available()
        if name not in known:
            expected = self.expected or f"one of {', '.join(known)}"
            raise ConfigError(f"unknown {self.kind} {(asked or name)!r}", expected, nearest(name, known))
        return importlib.import_module(f"{self.package}.{name}")

    def one_class(self, base: type[T], name: str, asked: str | None = None) -> type[T]:
        """The one public class of a file that derives from ``base``; for ``name`` and ``asked`` see ``module``.

        Raises:
            ConfigError: no such file, or one that does not define exactly one.
        """
        module = self.module(name, asked)
        own = [c for c in vars(module).values() if inspect.isclass(c) and issubclass(c, base) and c.__module__ == module.__name__]
        found = [c for c in own if not c.__name__.startswith("_")]
        if len(found) != 1:
            came = f"{module.__file__} defines {len(found)} {self.kind}s"
            raise ConfigError(came, "exactly one per file", "move the others to files of their own")
        return found[0]


def settings_of(found: type, *given: str) -> dict[str, Any]:
    """A class's own hyper-parameters and their defaults, but for those that its caller gives."""
    return {k: p.default for k, p in inspect.signature(found).parameters.items() if k not in given}
