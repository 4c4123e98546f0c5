"""``RedisHistories``: live events in a server that several processes and machines share."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar
from urllib.parse import quote

from isthmus.errors import ConfigError, HistoryError
from isthmus.serve.histories import LARGEST, LENGTH, Event, Histories, check_texts, packed, unpacked

DIGITS = 20  # of a time that counts from the smallest one


class RedisHistories(Histories):
    """A Redis server, which several replicas of a service share.

    A history is a sorted set whose scores are all equal: members stand in the order of their texts, and a text begins with its time, as
    a score is a double and would not tell late nanoseconds apart.  How much a crash of the server loses is the server's setting: with
    ``appendonly yes`` and ``appendfsync always`` nothing.

    Args:
        url: such as ``redis://localhost:6379/0``.
        length: see ``Histories``.
        prefix: of all keys.
        patience: seconds to wait for an answer.
        keep: seconds after a user's last event in a domain at which the server forgets the history; None: never.

    Raises:
        ConfigError: the client library is not installed, an address that is none, or a time that is none.
    """

    kind: ClassVar[str] = "redis"

    def __init__(self, url: str, length: int = LENGTH, *, prefix: str = "isthmus", patience: float = 0.25, keep: int | None = None) -> None:
        super().__init__(length)
        if importlib.util.find_spec("redis") is None:
            raise ConfigError("a Redis store, but its client is not installed", "it", "pip install 'isthmus[redis]'")
        if keep is not None and keep < 1:
            raise ConfigError(f"keep = {keep}", "1 or more seconds, or None", "leave it out to keep histories for good")
        import redis

        self.prefix, self.keep, self._error = prefix, keep, redis.RedisError
        try:
            self._client: Any = redis.Redis.from_url(url, socket_timeout=patience, socket_connect_timeout=patience, decode_responses=True)
        except ValueError as error:
            raise ConfigError(f"Redis at {url!r}: {error}", "redis://host:port/number", "correct the address") from error

    def append(self, events: Sequence[Event]) -> None:
        """One transaction, in one round trip."""
        if not events:
            return
        with self._errors(), self._client.pipeline(transaction=True) as pipe:
            members: dict[str, dict[str, int]] = {}
            for e in events:
                members.setdefault(self._key(e.user, e.domain), {})[f"{e.time + LARGEST + 1:0{DIGITS}d}{packed(e)}"] = 0
            for key, of in members.items():
                pipe.zadd(key, of, nx=True)
                pipe.zremrangebyrank(key, 0, -self.length - 1)
                if self.keep is not None:
                    pipe.expire(key, self.keep)
            pipe.execute()

    def of(self, users: Sequence[str], domains: Sequence[str]) -> list[dict[str, list[Event]]]:
        """One round trip."""
        check_texts((*users, *domains))
        pairs = [(user, domain) for user in users for domain in domains]
        with self._errors(), self._client.pipeline(transaction=False) as pipe:
            for user, domain in pairs:
                pipe.zrange(self._key(user, domain), 0, -1)
            found = iter(pipe.execute())
        read = [{d: [_told(user, d, member) for member in next(found)] for d in domains} for user in users]
        return [{d: events for d, events in of.items() if events} for of in read]

    def forget(self, user: str, domains: Sequence[str]) -> None:
        """One command."""
        check_texts((user, *domains))
        if domains:
            with self._errors():
                self._client.delete(*(self._key(user, d) for d in domains))

    def check(self) -> None:
        """Pings."""
        with self._errors():
            self._client.ping()

    def close(self) -> None:
        """Closes the connections."""
        self._client.close()

    def _key(self, user: str, domain: str) -> str:
        """Ids are quoted, so that no id can be mistaken for another's key; a user's keys lie on one node of a cluster."""
        return f"{self.prefix}:{{{quote(user, safe='')}}}:{quote(domain, safe='')}"

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (self._error, OSError) as error:
            raise HistoryError(f"Redis: {error}", "an answer", "see that the server runs, has room and can be reached") from error


def _told(user: str, domain: str, member: str) -> Event:
    return unpacked(user, domain, int(member[:DIGITS]) - LARGEST - 1, member[DIGITS:])
