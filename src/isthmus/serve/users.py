"""``Users``: a question -> all that is known of who asks: the stored profile, live events, context, and what to leave out."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from isthmus.errors import ConfigError, HistoryError, nearest
from isthmus.schema import PADDING, UNKNOWN, Schema
from isthmus.serve.asks import Ask, Basis, Given
from isthmus.serve.bundle import Bundle
from isthmus.serve.feeds import Row
from isthmus.serve.histories import Event, Histories
from isthmus.serve.ids import Id
from isthmus.serve.profiles import Past

TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


@dataclass(frozen=True, slots=True)
class Known:
    """A question with all that is known of its user.

    Attributes:
        ask: the question.
        row: for the models.
        basis: what the answer will rest on.
        hidden: item codes left out.
        allowed: places in the catalogue; None: all.
        unknown: ids among the events told that the bundle cannot place.
    """

    ask: Ask
    row: Row
    basis: Basis
    hidden: np.ndarray
    allowed: np.ndarray | None
    unknown: tuple[Id, ...]


class Users:
    """Who asks.

    Args:
        bundle: with the profiles.
        histories: live events; None: the bundle's alone.
        clock: seconds since 1970.
    """

    def __init__(self, bundle: Bundle, histories: Histories | None, clock: Callable[[], float] = time.time) -> None:
        self.bundle, self.histories, self.clock = bundle, histories, clock

    def known(self, asks: Sequence[Ask], d: int) -> tuple[list[Known], bool]:
        """The questions with what is known, and whether the live histories failed to answer."""
        live, stale = self._live(asks)
        return [self._known(ask, d, events) for ask, events in zip(asks, live, strict=True)], stale

    def now(self) -> int:
        """The present moment in the data's unit of time; where only the order counts, a moment after all that the bundle knows."""
        unit, until = self.bundle.schema.time_unit, self.bundle.until or 0
        if self.bundle.schema.timed and unit in TICKS:
            return int(self.clock() * TICKS[unit])
        return until + int(self.clock() * 1000)

    def event(self, user: Id, domain: str, item: Id, when: int | None, behaviour: str | None, label: float | None) -> Event:
        """An event to be kept, in the terms of the data.

        Raises:
            ConfigError: no such domain or behaviour, or a rating that is missing.
        """
        self.bundle.domain(domain)
        _check_kind(self.bundle.schema, behaviour, label)
        return Event(str(user), domain, str(item), self.now() if when is None else when, behaviour, label)

    def _live(self, asks: Sequence[Ask]) -> tuple[list[Mapping[str, list[Event]]], bool]:
        """The live events of each question's user by domain, and whether the store failed."""
        empty: list[Mapping[str, list[Event]]] = [{} for _ in asks]
        users = {str(ask.user): None for ask in asks if ask.user is not None and ask.history is None}
        if self.histories is None or not users:
            return empty, False
        try:
            found = dict(zip(users, self.histories.of(list(users), self.bundle.domains), strict=True))
        except HistoryError:
            return empty, True
        return [found.get(str(ask.user), {}) if ask.history is None else {} for ask in asks], False

    def _known(self, ask: Ask, d: int, live: Mapping[str, list[Event]]) -> Known:
        bundle = self.bundle
        code = UNKNOWN if ask.user is None else int(bundle.users.codes([ask.user])[0])
        unknown: tuple[Id, ...] = ()
        if ask.history is not None:
            past, unknown = self._told(ask.history, d)
        else:
            past = bundle.profiles.of(code).joined(self._past([e for events in live.values() for e in events])[0])
        past = past.before(ask.time)
        moment = self._moment(ask, past)
        read = any(stage.reads.anything_of(past, d) for stage in bundle.stages)
        learnt = code != UNKNOWN and any(stage.reads.user for stage in bundle.stages)
        basis: Basis = "history" if read else "profile" if learnt else "popular"
        hidden = [past.item[past.domain == d]] if ask.exclude_seen else []
        hidden.append(bundle.items.codes(ask.exclude))
        row = Row(code, past, moment, self._context(ask.context))
        return Known(ask, row, basis, np.unique(np.concatenate(hidden)), self._allowed(ask.where, d), unknown)

    def _moment(self, ask: Ask, past: Past) -> int:
        """When the question is asked, never before what is known of the user."""
        last = int(past.time[-1]) + 1 if past.time is not None and len(past) else 0
        if ask.time is not None:
            return ask.time
        return max(last, self.now()) if self.bundle.schema.time_unit in TICKS else max(last, (self.bundle.until or 0) + 1)

    def _told(self, history: Sequence[Given], d: int) -> tuple[Past, tuple[Id, ...]]:
        """Events told with a question, and the ids among them that are unknown."""
        schema, domains = self.bundle.schema, self.bundle.domains
        timed = [e.time for e in history if e.time is not None]
        clock = max([*timed, self.now() - len(history)], default=0)
        events = []
        for n, e in enumerate(history):
            if e.domain is not None:
                self.bundle.domain(e.domain)
            _check_kind(schema, e.behaviour, e.label, told=True)
            when = clock + 1 + n if e.time is None else e.time
            events.append(Event("", e.domain or domains[d], str(e.item), when, e.behaviour, e.label))
        return self._past(events)

    def _past(self, events: Sequence[Event]) -> tuple[Past, tuple[Id, ...]]:
        """Events as the model knows them, oldest first; items and domains that it does not know are left out and told."""
        bundle, schema = self.bundle, self.bundle.schema
        if schema.label == "click":  # only what was clicked enters a history
            events = [e for e in events if e.label is None or e.label > 0]
        events = sorted((e for e in events if e.domain in bundle.domains), key=lambda e: e.time)
        code = bundle.items.codes([e.item for e in events])
        known = code != UNKNOWN
        kept = [e for e, there in zip(events, known, strict=True) if there]
        past = Past(
            code[known],
            np.array([bundle.domains.index(e.domain) for e in kept], np.int64),
            np.array([e.time for e in kept], np.int64) if schema.timed else None,
            np.array([_behaviour(schema, e.behaviour) for e in kept], np.int64) if schema.behaviours else None,
            np.array([e.label or 0.0 for e in kept], np.float32) if schema.label == "rating" else None,
        )
        return past, tuple(dict.fromkeys(e.item for e, there in zip(events, known, strict=True) if not there))

    def _context(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Codes and numbers of all context fields: null is what a null in the data was; what was not given is unknown, or the mean."""
        fields = {f.name: f for f in self.bundle.schema.context}
        for name in given:
            if name not in fields:
                raise ConfigError(f"context {name!r}", f"one of {sorted(fields)}", nearest(name, fields))
        if not any(stage.reads.needs.context for stage in self.bundle.stages):
            return {}
        out: dict[str, Any] = {}
        for name, f in fields.items():
            value = given.get(name)
            if f.kind == "numeric":
                out[name] = 0.0 if name not in given else np.nan if value is None else self._standard(name, value)
            elif f.kind == "multi":
                if value is not None and not isinstance(value, (list, tuple)):
                    raise ConfigError(f"context {name!r} = {value!r}", "a list of categories", "put it into a list")
                out[name] = [] if value is None else self.bundle.contexts[name].codes(value).tolist()
            else:
                missing = PADDING if name in given else UNKNOWN
                out[name] = missing if value is None else int(self.bundle.contexts[name].codes([value])[0])
        return out

    def _standard(self, name: str, value: Any) -> float:
        """A number as the model reads it."""
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not np.isfinite(value):
            raise ConfigError(f"context {name!r} = {value!r}", "a finite number", "leave it out, or send a number")
        mean, deviation = self.bundle.manifest["scalers"][name]
        return (float(value) - mean) / deviation

    def _allowed(self, where: Mapping[str, Sequence[Id]], d: int) -> np.ndarray | None:
        """Places in the catalogue that filters leave."""
        if not where:
            return None
        item, kept = self.bundle.catalogues[d].item, None
        for name, values in where.items():
            if name not in self.bundle.fields:
                hint = nearest(name, self.bundle.fields) if self.bundle.fields else "leave it out: items have no such fields here"
                raise ConfigError(f"where {name!r}", f"an item field: {sorted(self.bundle.fields)}", hint)
            one = self.bundle.fields[name]
            codes = one.values.codes(values)
            has = one.has(codes[codes != UNKNOWN], item)
            kept = has if kept is None else kept & has
        assert kept is not None
        return np.flatnonzero(kept)


def _behaviour(schema: Schema, name: str | None) -> int:
    """Its code; of an event told without one the first's."""
    return 1 if name is None else schema.behaviours.index(name) + 1


def _check_kind(schema: Schema, behaviour: str | None, label: float | None, *, told: bool = False) -> None:
    """Refuses what the data do not have, and what they must have."""
    if behaviour is not None and behaviour not in schema.behaviours:
        expected = f"one of {schema.behaviours}" if schema.behaviours else "none: these data have no behaviours"
        raise ConfigError(
            f"behaviour {behaviour!r}", expected, nearest(behaviour, schema.behaviours) if schema.behaviours else "leave it out"
        )
    if schema.label == "rating" and label is None and not told:
        raise ConfigError("an event without a label", "its rating, as in the data", 'send "label"')
