"""``Histories``: what users did since their model was made, kept by a service while it runs.

An event is in the history that the next answer is made from as soon as ``append`` has returned, and it stays there when the
process is killed.  Two stores keep the promise: ``isthmus.serve.sqlite_histories``, a file beside one service, and
``isthmus.serve.redis_histories``, a server that several replicas share.

A history is bounded: of each user and domain the newest events stay.  Of two events the later one is newer; of events of one moment the
one told later (SQLite), or the one that comes later in the alphabet (Redis, where replicas have no common order).  Two events alike
in everything are one: to tell it again, as clients do that had no answer in time, changes nothing.
"""

from __future__ import annotations

import json
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from isthmus.errors import ConfigError

LENGTH = 200  # events of a user in a domain
LARGEST = 2**63 - 1  # times are 64-bit integers


@dataclass(frozen=True, slots=True)
class Event:
    """Something that a user did.

    Attributes:
        user, domain, item: their ids.
        time: in the unit of the model's data.
        behaviour: what it was, where the data know kinds.
        label: a rating or a click, where the data have them.

    Raises:
        ConfigError: a time or a label that no store can keep, or an id that is no Unicode text.
    """

    user: str
    domain: str
    item: str
    time: int
    behaviour: str | None = None
    label: float | None = None

    def __post_init__(self) -> None:
        if not -LARGEST - 1 <= self.time <= LARGEST:
            raise ConfigError(f"time = {self.time}", "a 64-bit integer", "give the time in the unit of the model's data")
        if self.label is not None and not math.isfinite(self.label):
            raise ConfigError(f"label = {self.label}", "a finite number, or None", "leave it out")
        check_texts((self.user, self.domain, self.item, self.behaviour or ""))


def check_texts(texts: Iterable[str]) -> None:
    """Refuses halves of surrogate pairs, which JSON can smuggle in and no store can write."""
    for text in texts:
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ConfigError(f"the id {text!r}", "Unicode text", "send its characters whole")


def packed(event: Event) -> str:
    """All of an event but where it stands."""
    return json.dumps([event.item, event.behaviour, event.label], ensure_ascii=False)


def unpacked(user: str, domain: str, time: int, what: str) -> Event:
    """The inverse of ``packed``."""
    item, behaviour, label = json.loads(what)
    return Event(user, domain, item, time, behaviour, label)


class Histories(ABC):
    """A store of live events; safe to use from several threads.

    Args:
        length: newest events kept of each user and domain.

    Raises:
        ConfigError: a length below 1.
    """

    kind: ClassVar[str]

    def __init__(self, length: int = LENGTH) -> None:
        if length < 1:
            raise ConfigError(f"length = {length}", "1 or more events", "keep as many as the model reads, at least")
        self.length = length

    @abstractmethod
    def append(self, events: Sequence[Event]) -> None:
        """Adds events, in any order; they are kept when it returns.

        Raises:
            HistoryError: the store does not answer, or has no room.  Of the events any may have been added: tell them all again.
        """

    @abstractmethod
    def of(self, users: Sequence[str], domains: Sequence[str]) -> list[dict[str, list[Event]]]:
        """For each user her events by domain, oldest first; domains without events are left out.

        Raises:
            HistoryError: the store does not answer.
        """

    @abstractmethod
    def forget(self, user: str, domains: Sequence[str]) -> None:
        """Deletes a user's events in these domains.

        Raises:
            HistoryError: the store does not answer.
        """

    @abstractmethod
    def check(self) -> None:
        """Asks whether the store answers.

        Raises:
            HistoryError: it does not.
        """

    @abstractmethod
    def close(self) -> None:
        """Lets go of files and connections; ``with`` does it at its end."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
