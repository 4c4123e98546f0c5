"""``retrieve``: the best items of a domain's whole catalogue for many users, in bounded memory.

The score of a ``Retriever`` is a dot product: its items are searched exactly, block by block, or through an ``Index``.  Other
models score every item of the catalogue for every user through ``forward``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from isthmus.data.batches import query_batch
from isthmus.errors import ConfigError
from isthmus.how import How
from isthmus.index import Index, Kind
from isthmus.layers.topk import Pairs, dots, scan
from isthmus.model import Model, Retriever, device_of, scoring
from isthmus.schema import UNKNOWN
from isthmus.segments import places

if TYPE_CHECKING:
    from isthmus.batch import Batch
    from isthmus.data.dataset import Dataset

USERS = 1 << 13  # users that items are passed by at once: item vectors are computed again for as many
BATCH = 1 << 10  # rows of a batch that makes user vectors
PAIRS = 1 << 17  # most (row, candidate) pairs in one call of a model
QUERIES = 256  # users on whom an index's recall is measured
PROBES = 8  # items on whose vectors an index and a model must agree
NOW = np.iinfo(np.int64).max


@dataclass(frozen=True, eq=False)
class Retrieved:
    """The first k items of each of Q users.

    Attributes:
        item: (Q, k) int64 codes, best first (equal scores: the smaller code first, where the search was exact), padded with 0.
        score: (Q, k) float32, padded with -inf.
    """

    item: np.ndarray
    score: np.ndarray

    def __len__(self) -> int:
        return len(self.item)


def retrieve(
    model: Model,
    dataset: Dataset,
    user: np.ndarray,
    domain: int,
    *,
    k: int = 100,
    time: np.ndarray | int | None = None,
    exclude_seen: bool = True,
    catalogue: str = "test",
    context: Mapping[str, np.ndarray] | None = None,
    index: Index | None = None,
    how: How | None = None,
) -> Retrieved:
    """The k best items that the domain can show, for each user.

    Args:
        model: a fitted model.
        dataset: with the schema that the model was built for.
        user: (Q,) codes, 1 for an unknown user.
        domain: its index.
        k: how many; users for whom fewer are left get padding.
        time: (Q,) or one moment; histories hold what came strictly before.  None: now, with all that the data hold.
        exclude_seen: leave out the items of the user's positive events in the domain before ``time``.
        catalogue: the part up to which items are known, see ``Dataset.catalogue``; an index has its own.
        context: (Q,) values by field, for models that read context; None: unknown categories and mean numbers.
        index: search this one, made by ``build_index`` from the same model, data and domain.
        how: history length as in training; a model trained on some domains only gets no histories from others.

    Returns:
        Items and scores; dot products, or the model's own logits.

    Raises:
        ConfigError: a k below 1, no such domain or part, users that are no codes, an index of another model, domain or data.
        DataError: scores that are not numbers.
    """
    ask = _Ask(model, dataset, domain, how or How(), context)
    user = np.asarray(user, np.int64)
    if k < 1 or user.ndim != 1 or (user < 0).any() or (user >= dataset.schema.user.size).any():
        came = f"k = {k}, users of shape {user.shape}, codes {user.min(initial=0)} to {user.max(initial=0)}"
        raise ConfigError(came, f"k of 1 or more, (Q,) codes below {dataset.schema.user.size}", "encode ids with dataset.user_vocabulary")
    moment = np.broadcast_to(np.asarray(NOW if time is None else time, np.int64), user.shape) if dataset.schema.timed else None
    item, score = np.zeros((len(user), k), np.int64), np.full((len(user), k), -np.inf, np.float32)
    with scoring(model):
        if index is not None:
            _check(ask, index)
        known = dataset.catalogue(domain, catalogue).astype(np.int64)
        for start in range(0, len(user), USERS):
            own = slice(start, min(start + USERS, len(user)))
            part = ask.of(user, moment, own)
            hide = dataset.history.items(part.user, part.time, domain) if exclude_seen else None
            item[own], score[own] = index.search(part.vectors(), k, hide) if index is not None else _exact(part, known, k, hide)
    return Retrieved(item, score)


def batch_now(model: Model, dataset: Dataset, user: np.ndarray, domain: int, how: How | None = None) -> Batch:
    """Users (Q,) as ``retrieve`` asks for them now, with all that the data hold, and without candidates."""
    return _Ask(model, dataset, domain, how or How(), None).now(user).batch(slice(None), np.zeros((len(user), 0), np.int64))


def build_index(
    model: Model,
    dataset: Dataset,
    domain: int,
    kind: Kind = "auto",
    *,
    k: int = 100,
    target_recall: float = 0.95,
    exclude_seen: bool = True,
    catalogue: str = "test",
    how: How | None = None,
) -> Index:
    """An index of a domain's items, its recall measured as it will be used: for users of the domain, without what they have seen.

    Args:
        model: a fitted retriever.
        dataset, domain, catalogue, how, exclude_seen: see ``retrieve``.
        kind, k, target_recall: see ``Index.build``; recall is measured on 256 users at most.

    Raises:
        ConfigError: a model whose score is no dot product; see also ``Index.build``.
    """
    if not isinstance(model, Retriever):
        raise ConfigError(f"an index for {type(model).__name__}, whose score is no dot product", "a Retriever", "retrieve without an index")
    ask = _Ask(model, dataset, domain, how or How(), None)
    users = dataset.history.users(domain)
    some = np.sort(np.random.default_rng(0).permutation(users)[:QUERIES])
    code = dataset.catalogue(domain, catalogue).astype(np.int64)
    with scoring(model):
        part = ask.now(some)
        vectors = torch.cat([ask.item_vectors(torch.from_numpy(some)) for some in np.split(code, np.arange(PAIRS, len(code), PAIRS))])
        hide = dataset.history.items(some, part.time, domain) if exclude_seen else None
        queries = part.vectors() if len(some) else None
    about = {**ask.about, "catalogue": catalogue}
    return Index.build(vectors, kind, item=code, queries=queries, hide=hide, k=k, target_recall=target_recall, about=about)


@dataclass(frozen=True)
class _Ask:
    """Some users' question to a domain."""

    model: Model
    dataset: Dataset
    domain: int
    how: How
    context: Mapping[str, np.ndarray] | None
    user: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64))
    time: np.ndarray | None = None

    def __post_init__(self) -> None:
        domains = len(self.dataset.schema.domains)
        if not 0 <= self.domain < domains:
            raise ConfigError(f"domain index {self.domain}", f"0 to {domains - 1}", "see schema.domain_names")

    @property
    def about(self) -> dict[str, Any]:
        """What an index must agree on."""
        return {"domain": self.dataset.schema.domain_names[self.domain], "schema": self.dataset.schema.fingerprint()}

    def of(self, user: np.ndarray, time: np.ndarray | None, rows: slice) -> _Ask:
        """The same question of these users."""
        context = {name: values[rows] for name, values in self.context.items()} if self.context else self.context
        moment = None if time is None else time[rows]
        return _Ask(self.model, self.dataset, self.domain, self.how, context, user[rows], moment)

    def now(self, user: np.ndarray) -> _Ask:
        """The same question of these users, with all that the data hold."""
        return self.of(user, np.full(len(user), NOW) if self.dataset.schema.timed else None, slice(None))

    def batch(self, rows: slice, item: np.ndarray) -> Batch:
        """Rows of the users with (Q, C) candidates."""
        user, cross = self.user[rows], self.how.crosses(len(self.dataset.schema.domains))
        context = {name: values[rows] for name, values in (self.context or self._unknown(len(self.user))).items()}
        time, needs = None if self.time is None else self.time[rows], self.model.needs
        domain = np.full(len(user), self.domain)
        batch = query_batch(self.dataset, needs, user, domain, time, item, self.how.history_length, cross=cross, context=context)
        return batch.to(device_of(self.model))

    def _unknown(self, rows: int) -> dict[str, np.ndarray]:
        """Context fields that say nothing: unknown categories, numbers at their mean, no values."""
        filled = {"categorical": np.full(rows, UNKNOWN), "numeric": np.zeros(rows, np.float32), "multi": np.zeros((rows, 1), np.int64)}
        return {f.name: filled[f.kind] for f in self.dataset.schema.context} if self.model.needs.context else {}

    def item_vectors(self, item: Tensor) -> Tensor:
        """(n,) codes -> (n, d)."""
        assert isinstance(self.model, Retriever)
        code = item.to(device_of(self.model))
        return self.model.item_vector(code, torch.full_like(code, self.domain)).float()

    def vectors(self) -> Tensor:
        """(Q, d) of the users."""
        assert isinstance(self.model, Retriever)
        none = np.zeros((len(self.user), 0), np.int64)
        blocks = (slice(start, start + BATCH) for start in range(0, max(1, len(self.user)), BATCH))
        return torch.cat([self.model.user_vector(self.batch(rows, none[rows])) for rows in blocks]).float()


def _exact(ask: _Ask, catalogue: np.ndarray, k: int, hide: Pairs | None) -> tuple[np.ndarray, np.ndarray]:
    """Items and scores (Q, k) of the users, from every item of the catalogue."""
    if isinstance(ask.model, Retriever):
        block = dots(ask.vectors(), lambda columns: ask.item_vectors(torch.from_numpy(catalogue[columns])))
    else:
        block = _forwards(ask, catalogue)
    if hide is not None:
        place, known = places(catalogue, hide[1])
        hide = hide[0][known], place[known]
    score, column = (t.cpu().numpy() for t in scan(len(ask.user), len(catalogue), k, block, hide, device_of(ask.model)))
    return np.where(column < 0, 0, catalogue.take(column, mode="clip") if len(catalogue) else 0), score


def _forwards(ask: _Ask, catalogue: np.ndarray) -> Callable[[slice], Callable[[slice], Tensor]]:
    """For ``scan``: many candidates of few users, since a user's own side is computed once per call."""

    def block(columns: slice) -> Callable[[slice], Tensor]:
        item = catalogue[columns]
        step = max(1, PAIRS // len(item))

        def score(rows: slice) -> Tensor:
            few = (slice(start, min(start + step, rows.stop)) for start in range(rows.start, rows.stop, step))
            return torch.cat([ask.model(ask.batch(some, np.tile(item, (some.stop - some.start, 1)))).logit for some in few])

        return score

    return block


def _check(ask: _Ask, index: Index) -> None:
    """Refuses an index of other items, and one of other weights."""
    if not isinstance(ask.model, Retriever):
        raise ConfigError(f"an index for {type(ask.model).__name__}, whose score is no dot product", "a Retriever", "leave the index out")
    for name, own in ask.about.items():
        if index.about.get(name, own) != own:
            raise ConfigError(f"an index of {name} {index.about[name]!r}", f"{name} {own!r}", "build an index of this domain and data")
    some = np.unique(np.linspace(0, len(index) - 1, PROBES).astype(np.int64)) if len(index) else np.zeros(0, np.int64)
    vectors, kept = ask.item_vectors(torch.from_numpy(index.item[some])).cpu(), index.at(torch.from_numpy(some)).cpu()
    if vectors.shape != kept.shape or not torch.allclose(vectors, kept, rtol=1e-3, atol=1e-4):
        raise ConfigError("an index with other item vectors than this model's", "one built from these weights", "build the index again")
