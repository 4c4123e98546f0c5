"""Questions of a data set's test part, as a client would ask them, with the scores that ``score`` gives."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from isthmus.data.batches import take_context
from isthmus.data.dataset import Dataset
from isthmus.data.queries import relevant_items
from isthmus.run import Run
from isthmus.schema import FIRST, PADDING
from isthmus.score import score


@dataclass(frozen=True)
class Question:
    """One query of ``score``: who, where, when, what to rank, and the scores it gave (by item id)."""

    user: Any
    domain: str
    time: int | None
    context: dict[str, Any]
    scores: dict[Any, float]


def questions(run: Run, dataset: Dataset, sampled: int = 7, limit: int = 12) -> Iterator[Question]:
    """Some queries, or rows where each row is judged for itself, of every domain of the test part."""
    rows = dataset.part("test")
    for d, domain in enumerate(dataset.schema.domain_names):
        asked = relevant_items(dataset, "test", d, run.task.each)
        if not len(asked):
            continue
        own = score(run.model, dataset, "test", task=run.task, how=run.how, candidates="sampled", sampled=sampled, domains=[d], limit=limit)
        for (key,), frame in own.frame.group_by(["group" if run.task.ranked else "row"], maintain_order=True):
            place = asked.first[np.flatnonzero(asked.group == key)] if run.task.ranked else np.flatnonzero(np.asarray(rows.row) == key)
            context = {f.name: _decoded(dataset, f.name, f.kind, rows.context[f.name], int(place[0])) for f in dataset.schema.context}
            user = dataset.user_vocabulary.decode([int(frame["user"][0])])[0]
            ids = dataset.item_vocabulary.decode(frame["item"].to_numpy()).to_list()
            time = None if rows.time is None else int(rows.time[place[0]])
            yield Question(user, domain, time, context, dict(zip(ids, frame["score"].to_list(), strict=True)))


def _decoded(dataset: Dataset, name: str, kind: str, column: Any, place: int) -> Any:
    """A context value as it was before it got a code; None where there was none, and a word that nobody knows where it was unknown."""
    value = take_context(column, np.array([place]))[0]
    if kind == "numeric":
        mean, deviation = dataset.scaler("context", name)
        return None if np.isnan(value) else float(value) * deviation + mean
    ids = dataset.field_vocabulary("context", name)
    if kind == "multi":
        return ids.decode(value[value >= FIRST]).to_list()
    return ids.decode([value])[0] if value >= FIRST else None if value == PADDING else "never seen"


def close(found: dict[Any, float], expected: dict[Any, float]) -> bool:
    """The same items, with scores alike to 1e-5 of their size."""
    items = sorted(expected, key=str)
    if sorted(found, key=str) != items:
        return False
    a, b = (pl.Series([scores[i] for i in items]).to_numpy() for scores in (found, expected))
    return bool(np.allclose(a, b, rtol=1e-5, atol=1e-5 * max(1.0, float(np.abs(b).max()))))
