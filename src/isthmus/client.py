"""``Client``: asks a running service from Python.

::

    with Client("http://localhost:8000") as client:
        client.tell("u1", "books", "i1")
        for one in client.recommend("books", user="u1", k=5):
            print(one.item, one.score)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from isthmus.errors import ConfigError, ServiceError

Id = str | int


@dataclass(frozen=True, slots=True)
class Reason:
    """An item that the user had, near to one of an answer."""

    item: Id
    cosine: float
    title: str | None = None


@dataclass(frozen=True, slots=True)
class Recommended:
    """An item of an answer.

    Attributes:
        item: its id.
        score: the model's own; of ``similar`` a cosine.
        title: a text to show, where the bundle has some.
        why: the user's events nearest to it, where asked for.
    """

    item: Id
    score: float | None
    title: str | None = None
    why: tuple[Reason, ...] = ()


@dataclass(frozen=True, slots=True)
class Recommendations:
    """An answer: a sequence of items, best first.

    Attributes:
        items: best first.
        basis: ``history``, ``profile`` or ``popular``: what they rest on; of ``similar`` None.
        bundle: which one answered.
        unknown: ids that the bundle cannot place.
        stale: live histories did not answer the service: events since the export are not in.
    """

    items: tuple[Recommended, ...]
    basis: str | None
    bundle: str
    unknown: tuple[Id, ...] = ()
    stale: bool = False

    def __iter__(self) -> Iterator[Recommended]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, n: int) -> Recommended:
        return self.items[n]


class Client:
    """A service's answers.  One may be used by several threads; connections are kept open.

    Args:
        url: of the service, such as ``http://localhost:8000``.
        api_key: where the service asks for one.
        timeout: seconds for an answer.
        retries: further tries where no connection comes about.

    Raises:
        ConfigError: httpx is not installed.
    """

    def __init__(self, url: str, *, api_key: str | None = None, timeout: float = 10.0, retries: int = 2) -> None:
        try:
            import httpx
        except ImportError as error:
            raise ConfigError("httpx is not installed", "the extra 'client'", "pip install 'isthmus[client]'") from error
        headers = {} if api_key is None else {"X-API-Key": api_key}
        self._errors = httpx.HTTPError
        self._http = httpx.Client(base_url=url, headers=headers, timeout=timeout, transport=httpx.HTTPTransport(retries=retries))

    def recommend(
        self,
        domain: str,
        *,
        user: Id | None = None,
        history: Sequence[Id | Mapping[str, Any]] | None = None,
        k: int = 10,
        time: int | None = None,
        context: Mapping[str, Any] | None = None,
        exclude_seen: bool = True,
        exclude: Sequence[Id] = (),
        where: Mapping[str, Sequence[Id]] | None = None,
        why: bool = False,
        bundle: str | None = None,
    ) -> Recommendations:
        """The best items of a domain.

        Args:
            domain: its name.
            user: her id; unknown users get what the history says, or what is popular.
            history: item ids, or events (``{"item": ..., "time": ...}``), oldest first, instead of what is kept of the user.
            k: how many.
            time: the moment asked about, in the data's unit; None: now.
            context: values of context fields.
            exclude_seen: leave out what the user had in this domain.
            exclude: items left out.
            where: by item field, categories one of which an item must have.
            why: name the user's events nearest to each item.
            bundle: ask this one, by its name.

        Raises:
            ServiceError: the service refuses, fails or does not answer.
        """
        body = {"user": user, "history": _plain(history), "k": k, "time": time, "context": dict(context or {}), "why": why}
        body |= {"exclude_seen": exclude_seen, "exclude": list(exclude), "where": {f: list(v) for f, v in (where or {}).items()}}
        return _answer(self._call("POST", f"/v1/{_quoted(domain)}/recommend", body, {"bundle": bundle}))

    def rank(
        self,
        domain: str,
        candidates: Sequence[Id],
        *,
        user: Id | None = None,
        history: Sequence[Id | Mapping[str, Any]] | None = None,
        k: int | None = None,
        time: int | None = None,
        context: Mapping[str, Any] | None = None,
        why: bool = False,
        bundle: str | None = None,
    ) -> Recommendations:
        """Candidates in order, best first; the k best of them, or all.  Other arguments as in ``recommend``.

        Raises:
            ServiceError: the service refuses, fails or does not answer.
        """
        body = {"user": user, "history": _plain(history), "k": k, "time": time, "context": dict(context or {}), "why": why}
        return _answer(self._call("POST", f"/v1/{_quoted(domain)}/rank", body | {"candidates": list(candidates)}, {"bundle": bundle}))

    def similar(self, domain: str, item: Id, *, k: int = 10, bundle: str | None = None) -> Recommendations:
        """Items whose vectors point the same way.

        Raises:
            ServiceError: the service refuses, fails or does not answer.
        """
        return _answer(self._call("POST", f"/v1/{_quoted(domain)}/similar", {"item": item, "k": k}, {"bundle": bundle}))

    def tell(
        self, user: Id, domain: str, item: Id, *, time: int | None = None, behaviour: str | None = None, label: float | None = None
    ) -> None:
        """Tells what a user did; it is kept when this returns, and the next answer reflects it.

        Raises:
            ServiceError: it may not have been kept; with a ``time`` it can be told again without counting twice.
        """
        self.tell_all([{"user": user, "domain": domain, "item": item, "time": time, "behaviour": behaviour, "label": label}])

    def tell_all(self, events: Sequence[Mapping[str, Any]]) -> None:
        """Tells several events, with the keys of ``tell``'s arguments.

        Raises:
            ServiceError: some may not have been kept.
        """
        self._call("POST", "/v1/events", {"events": [dict(event) for event in events]})

    def forget(self, user: Id) -> None:
        """Deletes a user's live events.

        Raises:
            ServiceError: the service refuses, fails or does not answer.
        """
        self._call("DELETE", "/v1/events", params={"user": str(user)})

    def domains(self) -> dict[str, int]:
        """The domains, with how many items each shows.

        Raises:
            ServiceError: the service refuses, fails or does not answer.
        """
        return {one["domain"]: one["items"] for one in self._call("GET", "/v1/domains")["domains"]}

    def close(self) -> None:
        """Closes the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _call(self, method: str, path: str, body: Any = None, params: Mapping[str, Any] | None = None) -> Any:
        asked = {name: value for name, value in (params or {}).items() if value is not None}
        try:
            response = self._http.request(method, path, json=body, params=asked)
        except self._errors as error:
            came = f"{self._http.base_url} does not answer ({error})"
            raise ServiceError(came, "a running service", "see that it runs: isthmus serve BUNDLE") from error
        if response.is_success:
            return response.json()
        try:
            fault = response.json()["error"]
            raise ServiceError(fault["came"], fault["expected"], fault["do"], status=response.status_code, field=fault["field"])
        except (ValueError, KeyError, TypeError) as error:
            came = f"{self._http.base_url} answers {response.status_code}"
            raise ServiceError(came, "an Isthmus service", "check the address", status=response.status_code) from error


def _plain(history: Sequence[Id | Mapping[str, Any]] | None) -> list[Any] | None:
    return None if history is None else [dict(event) if isinstance(event, Mapping) else event for event in history]


def _quoted(domain: str) -> str:
    from urllib.parse import quote

    return quote(domain, safe="")


def _answer(body: dict[str, Any]) -> Recommendations:
    why = [tuple(Reason(**reason) for reason in one.get("why", ())) for one in body["items"]]
    items = tuple(Recommended(one["item"], one["score"], one.get("title"), own) for one, own in zip(body["items"], why, strict=True))
    return Recommendations(items, body.get("basis"), body["bundle"], tuple(body.get("unknown", ())), body.get("stale", False))
