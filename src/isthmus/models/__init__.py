"""One file per system, found by its name; no file imports another.

Listing the names imports nothing: the folder is the registry.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.registry import Registry, settings_of

if TYPE_CHECKING:
    from isthmus.model import Model

_REGISTRY = Registry(__name__, __file__, "model", "the name of a file in isthmus/models")


def available() -> dict[str, Path]:
    """Names of all models and the files they lie in, in alphabetical order."""
    return _REGISTRY.available()


def get_model(name: str) -> type[Model]:
    """The model class of a file.

    Raises:
        ConfigError: no such model (tells the nearest name), or a file that does not hold exactly one.
    """
    from isthmus.model import Model

    return _REGISTRY.one_class(Model, name)


def settings(name: str) -> dict[str, Any]:
    """A model's own hyper-parameters and their defaults."""
    return settings_of(get_model(name), "schema")


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
