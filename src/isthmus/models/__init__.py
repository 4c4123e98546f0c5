"""One file per system, found by its name; no file imports another.

Listing the names imports nothing: the folder is the registry.
"""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.errors import ConfigError, nearest

if TYPE_CHECKING:
    from isthmus.model import Model


def available() -> dict[str, Path]:
    """Names of all models and the files they lie in, in alphabetical order."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    return {f.stem: f for f in files if not f.stem.startswith("_")}


def get_model(name: str) -> type[Model]:
    """The model class of a file.

    Raises:
        ConfigError: no such model (tells the nearest name), or a file that does not hold exactly one.
    """
    from isthmus.model import Model, Retriever

    if name not in available():
        raise ConfigError(f"unknown model {name!r}", "the name of a file in isthmus/models", nearest(name, available()))
    module = importlib.import_module(f"isthmus.models.{name}")
    found = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Model) and value not in (Model, Retriever) and value.__module__ == module.__name__
    ]
    if len(found) != 1:
        raise ConfigError(f"{module.__file__} defines {len(found)} models", "exactly one per file", "move the others to files of their own")
    return found[0]


def settings(name: str) -> dict[str, Any]:
    """A model's own hyper-parameters and their defaults."""
    return {k: p.default for k, p in inspect.signature(get_model(name)).parameters.items() if k != "schema"}


def describe(name: str) -> dict[str, Any]:
    """What a user wants to know of a model: its name, kind, jobs, what it reads, its settings and its paper."""
    from isthmus.model import Retriever

    model = get_model(name)
    return {
        "name": name,
        "kind": "shallow" if model.shallow else "retriever" if issubclass(model, Retriever) else "network",
        "tasks": list(model.tasks),
        "needs": [n for n in model.needs.__dataclass_fields__ if getattr(model.needs, n)],
        "settings": settings(name),
        "paper": model.paper,
    }
