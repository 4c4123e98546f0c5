"""``Reads`` and ``feeds``: what a model's graph reads, and how rows of users become its arrays.

The arrays are those of a ``Batch``: histories right-aligned, most recent last, 0 pads (-1 in domains).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isthmus.batch import Needs, history_field
from isthmus.schema import Schema
from isthmus.serve.profiles import Past

NO_DOMAIN = -1
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class Row:
    """One user, asked about at one moment.

    Attributes:
        user: code, 1 where unknown.
        past: what the user had done before.
        time: the moment, where events have times.
        context: codes or numbers by field; a list of codes where it has several values.
    """

    user: int
    past: Past
    time: int
    context: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Reads:
    """What a model reads.

    Attributes:
        needs: of the model.
        length: events of a history, at most; histories that are read whole have no such limit.
        cross: events of other domains are read; False: the model knows some of the domains only.
        user: the model learnt something of each user, or reads her fields.
    """

    needs: Needs
    length: int
    cross: bool
    user: bool

    def anything_of(self, past: Past, domain: int) -> bool:
        """Whether any of these events reaches the model when it is asked about the domain."""
        own = bool((past.domain == domain).any())
        other = self.cross and bool((past.domain != domain).any())
        needs = self.needs
        return (own and (needs.history or needs.merged_history)) or (other and (needs.cross_history or needs.merged_history))


def feeds(reads: Reads, schema: Schema, rows: Sequence[Row], domain: int) -> Arrays:
    """The arrays of B rows of one domain by name, without candidates; see ``Batch`` for their shapes."""
    needs = reads.needs
    out = {"user": np.array([row.user for row in rows], np.int64)}
    for name, columns in needs.histories.items():
        found = _padded([_seen(row.past, name, domain, reads.cross) for row in rows], reads, columns)
        out |= {history_field(name, column): values for column, values in found.items()}
    if needs.history_time and schema.timed:
        out["time"] = np.array([row.time for row in rows], np.int64)
    if needs.context:
        out |= {f"context.{f.name}": _context(f.kind, [row.context[f.name] for row in rows]) for f in schema.context}
    return out


def _seen(past: Past, history: str, domain: int, cross: bool) -> Past:
    """The events of one of a batch's histories."""
    if history == "cross_history":
        return past.take(past.domain != domain if cross else slice(0, 0))
    return past if history == "merged_history" and cross else past.take(past.domain == domain)


def _padded(pasts: Sequence[Past], reads: Reads, columns: Sequence[str]) -> Arrays:
    """(B, L) columns of the latest events, those that the data have."""
    longest = max((len(past) for past in pasts), default=0)
    width = max(1, longest) if reads.needs.whole_history else reads.length
    shape = (len(pasts), width)
    out: Arrays = {}
    for name in columns:
        if all(getattr(past, name) is not None for past in pasts):
            out[name] = np.full(shape, NO_DOMAIN if name == "domain" else 0, np.float32 if name == "label" else np.int64)
    for n, past in enumerate(pasts):
        kept = min(len(past), width)
        if kept:
            for name, values in out.items():
                values[n, width - kept :] = getattr(past, name)[len(past) - kept :]
    return out


def _context(kind: str, values: Sequence[Any]) -> np.ndarray:
    """(B,) codes or numbers, or (B, M) codes padded with 0."""
    if kind != "multi":
        return np.array(values, np.float32 if kind == "numeric" else np.int64)
    out = np.zeros((len(values), max(1, *(len(value) for value in values))), np.int64)
    for n, value in enumerate(values):
        out[n, : len(value)] = value
    return out
