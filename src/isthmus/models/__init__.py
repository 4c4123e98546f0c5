"""One file per system, found by its name; no file imports another.

Listing the names imports nothing: the folder is the registry.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.errors import ConfigError, nearest
from isthmus.registry import Registry, settings_of
from isthmus.schema import HashedIds, Schema
from isthmus.values import require_types

if TYPE_CHECKING:
    from isthmus.model import Model

ROWS = {"user_rows": "user", "item_rows": "item"}  # settings of every model with embedding tables, and the side each is about
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


def check_settings(name: str, args: Mapping[str, Any], of: str | None = None) -> None:
    """Refuses hyper-parameters that a model does not have, and values of another type than it declares.

    Args:
        name: of the model.
        args: its hyper-parameters, ``ROWS`` among them.
        of: whose they are, for the message; None: the model's name.

    Raises:
        ConfigError: no such model, no such hyper-parameter (tells the nearest one), or a value that does not fit.
    """
    of, known = of or f"model {name!r}", [*settings(name), *ROWS]
    for key in args:
        if key not in known:
            raise ConfigError(f"{of}: unknown setting {key!r}", f"one of {known}", nearest(key, known))
    for owner in (get_model(name), share_rows):
        require_types(owner, args, of)


def share_rows(schema: Schema, user_rows: int | None = None, item_rows: int | None = None) -> Schema:
    """The schema of a model in whose tables ids share rows, see ``isthmus.layers.id_rows``.

    Args:
        schema: of the encoded data set.
        user_rows, item_rows: how many rows the ids share; None: each has its own.

    Raises:
        ConfigError: too few rows.
    """
    user, item = (None if n is None else HashedIds(n, side.trained) for n, side in ((user_rows, schema.user), (item_rows, schema.item)))
    return schema if user is item is None else schema.hashed(user, item)


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
