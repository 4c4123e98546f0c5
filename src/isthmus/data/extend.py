"""``aligned``: new events in the terms of a data set that exists already, so that a model trained on it can go on.

Its domains, behaviours and fields come first and in its order; what cannot be kept is refused.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from isthmus.data.events import Events
from isthmus.data.split import Split
from isthmus.errors import ConfigError
from isthmus.schema import Domain, Entity, Field, Schema


def aligned(events: Events, split: Split, base: Schema) -> tuple[Events, Split]:
    """The same events and split, with the base's domains and behaviours before new ones, and its fields.

    Args:
        events: the events; they need not hold every domain of the base.
        split: which of them train, validate and test.
        base: of the data set to extend.

    Raises:
        ConfigError: another label kind or unit of time, times or behaviours on one side alone, or other fields.
    """
    own = events.schema
    _check(own, base)
    domains, domain = _extended(base.domain_names, own.domain_names)
    behaviours, behaviour = _extended(base.behaviours, own.behaviours)
    shows = None
    if events.shows is not None:
        given = dict(zip(domain.tolist(), events.shows, strict=True))
        shows = [given.get(d, np.zeros(0, np.int64)) for d in range(len(domains))]
    schema = replace(
        own,
        domains=tuple(Domain(name) for name in domains),
        behaviours=behaviours,
        user=_entity("user", own.user, base.user),
        item=_entity("item", own.item, base.item),
        context=_fields("context", own.context, base.context),
    )
    moved = replace(
        events,
        schema=schema,
        domain=domain[events.domain].astype(events.domain.dtype),
        behaviour=None if events.behaviour is None else behaviour[events.behaviour].astype(events.behaviour.dtype),
        shows=shows,
    )
    lists = {name: replace(found, domain=domain[found.domain]) for name, found in split.candidates.items()}
    return moved, replace(split, candidates=lists)


def _check(own: Schema, base: Schema) -> None:
    for what, here, there in (
        ("labels of kind", own.label, base.label),
        ("times:", "some" if own.timed else "none", "some" if base.timed else "none"),
        ("times in", own.time_unit, base.time_unit),
        ("behaviours:", "some" if own.behaviours else "none", "some" if base.behaviours else "none"),
    ):
        if here != there:
            raise ConfigError(f"new events with {what} {here}", f"{there}, as in the data set to extend", "read the events as its own were")


def _extended(base: tuple[str, ...], own: tuple[str, ...]) -> tuple[tuple[str, ...], np.ndarray]:
    """The base's names and then the new ones, and where each of ``own`` stands among them."""
    names = (*base, *(name for name in own if name not in base))
    return names, np.array([names.index(name) for name in own], np.int64)


def _entity(name: str, own: Entity, base: Entity) -> Entity:
    return replace(own, fields=_fields(name, own.fields, base.fields))


def _fields(where: str, own: tuple[Field, ...], base: tuple[Field, ...]) -> tuple[Field, ...]:
    """The base's fields, sizes to be found again."""
    here, there = ({field.name: field.kind for field in fields} for fields in (own, base))
    if here != there:
        came = f"new events with {where} fields {here}"
        raise ConfigError(came, f"{there}, as in the data set to extend", "give the events the same fields, of the same kinds")
    return tuple(Field(field.name, field.kind) for field in base)
