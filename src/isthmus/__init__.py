"""Isthmus: one recommender for all your domains, and proof, domain by domain, that sharing helped.

The walk: ``sources`` -> ``Events`` -> ``split`` -> ``encode`` -> ``Dataset`` -> ``fit`` -> ``score`` -> ``measure``
-> ``ledger`` -> report.  ``Recommender`` is the three-line way, ``compare`` the whole comparison.

Names are imported when first used, so that ``import isthmus`` (and the command line's help) stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from isthmus.batch import Batch, Needs, Output
    from isthmus.data.dataset import Dataset
    from isthmus.data.encode import encode
    from isthmus.data.events import Events, read_events
    from isthmus.data.split import Split
    from isthmus.errors import IsthmusError
    from isthmus.experiment import ModelSpec, Recipe, compare
    from isthmus.fit import How, load_run
    from isthmus.model import Model, Retriever, Stage
    from isthmus.recommender import Recommender
    from isthmus.schema import Domain, Entity, Field, Schema
    from isthmus.scores import Scores
    from isthmus.serve.asks import Ask
    from isthmus.serve.engine import load

_HOME = {
    "Ask": "serve.asks",
    "Batch": "batch",
    "Dataset": "data.dataset",
    "Domain": "schema",
    "Entity": "schema",
    "Events": "data.events",
    "Field": "schema",
    "How": "fit",
    "IsthmusError": "errors",
    "Model": "model",
    "ModelSpec": "experiment",
    "Needs": "batch",
    "Output": "batch",
    "Recipe": "experiment",
    "Recommender": "recommender",
    "Retriever": "model",
    "Schema": "schema",
    "Scores": "scores",
    "Split": "data.split",
    "Stage": "model",
    "compare": "experiment",
    "encode": "data.encode",
    "load": "serve.engine",
    "load_run": "fit",
    "read_events": "data.events",
}
# ``fit``, ``score``, ``measure`` and ``ledger`` are not here: a package cannot offer a function under the name of its module.

__all__ = [
    "Ask",
    "Batch",
    "Dataset",
    "Domain",
    "Entity",
    "Events",
    "Field",
    "How",
    "IsthmusError",
    "Model",
    "ModelSpec",
    "Needs",
    "Output",
    "Recipe",
    "Recommender",
    "Retriever",
    "Schema",
    "Scores",
    "Split",
    "Stage",
    "__version__",
    "compare",
    "encode",
    "load",
    "load_run",
    "read_events",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'isthmus' has no attribute {name!r}")
    return getattr(importlib.import_module(f"isthmus.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return __all__
