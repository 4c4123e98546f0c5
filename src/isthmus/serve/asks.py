"""What is asked, and what is answered: ``Ask`` -> ``Answer``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from isthmus.serve.ids import Id

Basis = Literal["history", "profile", "popular"]


@dataclass(frozen=True, slots=True)
class Given:
    """An event told with a question.

    Attributes:
        item: its id.
        domain: its name; None: the one asked about.
        time: in the data's unit; None: after all before it.
        behaviour, label: where the data have them.
    """

    item: Id
    domain: str | None = None
    time: int | None = None
    behaviour: str | None = None
    label: float | None = None


@dataclass(frozen=True, slots=True)
class Ask:
    """A question to one domain.

    Attributes:
        user: an id, or None.
        history: events instead of those that are kept of the user; None: those.
        time: the moment asked about: what is before it counts; None: now.
        context: values of the data's context fields; one left out is unknown.
        k: items wanted.
        exclude_seen: leave out what the user had in this domain.
        exclude: ids left out.
        where: by item field, categories one of which an item must have.
        candidates: rank these ids alone; None: the domain's catalogue.
        why: name the user's events nearest to each item.
    """

    user: Id | None = None
    history: Sequence[Given] | None = None
    time: int | None = None
    context: Mapping[str, Any] = field(default_factory=dict[str, Any])
    k: int = 10
    exclude_seen: bool = True
    exclude: Sequence[Id] = ()
    where: Mapping[str, Sequence[Id]] = field(default_factory=dict[str, Sequence[Id]])
    candidates: Sequence[Id] | None = None
    why: bool = False


@dataclass(frozen=True, slots=True)
class Reason:
    """An item that the user had, near to one of an answer."""

    item: Id
    cosine: float
    title: str | None = None


@dataclass(frozen=True, slots=True)
class Ranked:
    """An item of an answer; ``why`` holds the user's events nearest to it."""

    item: Id
    score: float
    title: str | None = None
    why: tuple[Reason, ...] = ()


@dataclass(frozen=True, slots=True)
class Answer:
    """What a question gets.

    Attributes:
        items: best first.
        basis: ``history``: of events that the model read; ``profile``: of what the model learnt of the user, or of her fields;
            ``popular``: of nothing about the user, so these are the domain's most often chosen items, scored by how often that was
            (or by a model that reads nothing of users).
        unknown: candidates, or events of a history told, that the bundle cannot place.
        stale: live histories did not answer: events since the export are not in.
    """

    items: tuple[Ranked, ...]
    basis: Basis
    unknown: tuple[Id, ...] = ()
    stale: bool = False
