"""``score``: a fitted model and a part of the data -> ``Scores``, the table that everything after reads.

Rows of ctr and rating tasks are scored one by one.  Ranked tasks ask one query per user and domain of the part, as of
her first event there, or one per event, as of its own moment (``Task.each``), and rank

- the lists given with the data, exactly as they are (kind ``lists``), where there are any;
- else the domain's whole catalogue but what the user has seen in earlier parts, and before the event (kind ``full``): the rank of every
  relevant item is exact, and the first k places are kept;
- a few sampled items, only when asked for (kind ``sampled``).

Scores are the model's own: logits for clicks; ratings for ratings, but none outside the range that training showed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl
import torch
from torch import Tensor

from isthmus.allocator import keep_blocks
from isthmus.data.ahead import ahead
from isthmus.data.batches import Plan, batches_with_rows, query_batch, take_context
from isthmus.data.queries import Each, Queries, chosen_before, given_lists, relevant_items, sampled_lists, seen_items
from isthmus.data.split import COLD_USERS
from isthmus.errors import ConfigError, DataError, nearest
from isthmus.how import How
from isthmus.layers.ranking import best, ranks
from isthmus.model import Model, Retriever, device_of, scoring
from isthmus.scores import TYPES, Kind, Scores
from isthmus.segments import places
from isthmus.slices import SOURCE_STATES, STATES
from isthmus.task import Task, default_task
from isthmus.threads import compute_alone

if TYPE_CHECKING:
    from isthmus.batch import Batch
    from isthmus.data.dataset import Dataset

__all__ = ["Kind", "Scores", "score"]

PAIRS = 1 << 17  # most (row, candidate) pairs in one call of a model
CELLS = 1 << 23  # most cells of one block of queries x catalogue, of which every thread has one: 32 MiB
ROWS = 1 << 9  # most queries of a block where threads share the blocks, so that a small catalogue has some for all of them
ITEMS, USERS = 1 << 14, 1 << 10  # rows of one call for the vectors of items, and of users
WORST = float(np.finfo(np.float32).min)  # stands for the score of an item outside the catalogue
FEW = 5  # most training events in the domain of a user in state "few"
SOURCE_BOUNDS = (5, 20)  # training events in other domains from which the next state begins
SEED = 0  # of sampled items
Candidates = Literal["auto", "lists", "full", "sampled"]
Asked = tuple[Queries, Callable[[], Tensor]]  # some queries, and what gives their scores of the whole catalogue (Q, n)


def score(
    model: Model,
    dataset: Dataset,
    part: str = "test",
    *,
    task: Task | None = None,
    how: How | None = None,
    candidates: Candidates = "auto",
    catalogue: str | None = None,
    k: int = 100,
    sampled: int = 99,
    domains: Sequence[int] | None = None,
    limit: int | None = None,
) -> Scores:
    """Scores a part of the data, on the device where the model is.

    On a CPU a full ranking by a retriever keeps as many cores busy as torch has threads; each thread holds 32 MiB of scores.

    Args:
        model: a fitted model.
        dataset: with the schema that the model was built for.
        part: ``train``, ``valid`` or ``test``.
        task: None: the one that the labels suggest.
        how: batch size and history length as in training; a model trained on some domains only gets no histories
            from others.
        candidates: what ranked tasks rank; ``auto``: the given lists, or without them the full catalogue.
        catalogue: the part up to which a full ranking knows the items; None: the part scored.  With ``train``, relevant
            items that no training row or declaration shows are misses, as in an index built after training.
        k: places kept of a full ranking; relevant items are kept wherever they are.
        sampled: items beside the relevant ones in sampled lists; drawn alike for all models.
        domains: indices of the domains to score; None: all.
        limit: rows (ranked tasks: queries) per domain at most, a random but always the same choice; None: all.

    Returns:
        Scores; see there for the columns.

    Raises:
        ConfigError: an unknown part, or way to find candidates.
        DataError: no lists where they are asked for.
    """
    task, how = task or default_task(dataset.schema), how or How()
    if part not in ("train", "valid", "test"):
        raise ConfigError(f"part {part!r}", "train, valid or test", nearest(part, ("train", "valid", "test")))
    known = range(len(dataset.schema.domains))
    chosen = tuple(known) if domains is None else tuple(sorted(set(domains)))
    if not set(chosen) <= set(known):
        raise ConfigError(f"domain indices {chosen}", f"0 to {len(known) - 1}", "see schema.domain_names")
    work = _Work(model, dataset, part, how, how.crosses(len(known)), catalogue or part, k, limit, task.each)
    with scoring(model):
        if not task.ranked:
            bounds = dataset.schema.rating_range if task.name == "rating" else None
            return Scores(_finished(dataset, _rows(work, chosen, bounds)), "rows", task.name, part)
        kind = _kind(dataset, part, candidates)
        if kind == "full":
            blocks = chain.from_iterable(_full(work, d) for d in chosen)
            sizes = {dataset.schema.domain_names[d]: len(dataset.catalogue(d, work.catalogue)) for d in chosen}
            return Scores(_finished(dataset, blocks), kind, task.name, part, catalogue=sizes, places=k)
        if kind == "lists":
            found = (given_lists(dataset, part, d, task.each) for d in chosen)
        else:
            found = (sampled_lists(dataset, part, d, sampled, SEED, task.each) for d in chosen)
        blocks = chain.from_iterable(_lists(work, queries.limited(limit)) for queries in found)
        lists = _list_names(dataset, part, kind, sampled, chosen)
        return Scores(_finished(dataset, blocks), kind, task.name, part, lists)


@dataclass(frozen=True)
class _Work:
    """What scoring needs throughout."""

    model: Model
    dataset: Dataset
    part: str
    how: How
    cross: bool
    catalogue: str
    k: int
    limit: int | None
    each: Each

    def batch(self, queries: Queries, item: np.ndarray) -> Batch:
        """Queries with (Q, C) candidates."""
        rows, domain = self.dataset.part(self.part), np.full(len(queries), queries.domain)
        time = None if rows.time is None else rows.time.take(queries.first)
        context = {name: take_context(c, queries.first) for name, c in rows.context.items()} if self.model.needs.context else None
        length = self.how.history_length
        batch = query_batch(self.dataset, self.model.needs, queries.user, domain, time, item, length, cross=self.cross, context=context)
        return batch.to(device_of(self.model))


def _rows(work: _Work, domains: tuple[int, ...], bounds: tuple[float, float] | None = None) -> Iterator[dict[str, np.ndarray]]:
    """Columns of logged rows, batch by batch; scores are kept within the bounds."""
    rows, limit = work.dataset.part(work.part), work.limit
    size = np.diff(np.asarray(rows.offsets))
    small = tuple(d for d in domains if limit is None or size[d] <= limit)
    for group, cut in [(small, None), *(((d,), limit) for d in domains if d not in small)]:
        if not group or not size[list(group)].sum():
            continue
        how = work.how
        plan = Plan(min(how.batch_size, cut or how.batch_size), history_length=how.history_length, domains=group, cross=work.cross)
        left = cut if cut is not None else int(size[list(group)].sum())
        pairs = batches_with_rows(work.dataset, work.part, work.model.needs, plan, labels=False, shuffle=cut is not None)
        try:
            for place, batch in pairs:
                logit = work.model(batch.to(device_of(work.model))).logit[:left, 0].float().cpu().numpy()
                logit = logit if bounds is None else logit.clip(*bounds)
                place = place[:left]
                label = np.ones(len(place)) if rows.label is None else rows.label.take(place)
                user, domain = rows.user.take(place), batch.domain.cpu().numpy()[:left]
                columns = {"row": rows.row.take(place), "group": user, "user": user, "item": rows.item.take(place)}
                yield columns | {"domain": domain, "label": label, "score": logit}
                left -= len(place)
                if not left:
                    break
        finally:
            pairs.close()


def _lists(work: _Work, queries: Queries) -> Iterator[dict[str, np.ndarray]]:
    """Columns of lists, in their order, block by block."""
    longest = int(np.diff(queries.offsets).max(initial=1))
    for block in queries.blocks(max(1, min(work.how.batch_size, PAIRS // longest))):
        item, real = block.padded()
        if not item.size:
            continue
        logit = work.model(work.batch(block, item)).logit.float().cpu().numpy()[real]
        query = np.repeat(np.arange(len(block)), np.diff(block.offsets))
        yield _columns(work.dataset, block, query, block.item, block.row, block.label, score=logit)


def _full(work: _Work, domain: int) -> Iterator[dict[str, np.ndarray]]:
    """Columns of full rankings: the first k places of each query and its relevant items, block by block."""
    queries = relevant_items(work.dataset, work.part, domain, work.each).limited(work.limit)
    if not len(queries):
        return
    catalogue, seen = work.dataset.catalogue(domain, work.catalogue).astype(np.int64), seen_items(work.dataset, work.part, domain)
    before = chosen_before(work.dataset, work.part, queries)
    retriever = isinstance(work.model, Retriever)
    alone = retriever and device_of(work.model).type == "cpu"
    size = max(1, min(work.how.batch_size, ROWS if alone else CELLS, CELLS // max(1, len(catalogue))))

    def ranked(block: Queries, scores: Callable[[], Tensor]) -> dict[str, np.ndarray]:
        with torch.inference_mode():  # every thread has its own
            return _ranking(work, block, catalogue, [seen.gather(block.user), before.gather(block.group)], scores())

    keep_blocks()
    asked = (_products if retriever else _forwards)(work, queries, catalogue, size)
    if alone:  # as many blocks at once as torch has threads, each from product to places by one of them: nothing waits for a core
        threads = torch.get_num_threads()
        yield from ahead(lambda one: ranked(*one), asked, 2 * threads, threads, compute_alone)
    else:  # a block is ranked while the next one is scored
        yield from ahead(lambda one: ranked(one[0], lambda: one[1]), ((block, scores()) for block, scores in asked), 1)


def _products(work: _Work, queries: Queries, catalogue: np.ndarray, size: int) -> Iterator[Asked]:
    """Of a retriever, whose vectors are made here, in the caller's thread."""
    assert isinstance(work.model, Retriever)
    model, codes = work.model, torch.from_numpy(catalogue).to(device_of(work.model))
    items = torch.cat([model.item_vector(some, torch.full_like(some, queries.domain)) for some in codes.split(ITEMS)]).T
    for batch in queries.blocks(min(work.how.batch_size, max(size, USERS)) // size * size):
        users = model.user_vector(work.batch(batch, np.zeros((len(batch), 0), np.int64)))
        for block, own in zip(batch.blocks(size), users.split(size), strict=True):
            yield block, lambda own=own: (own @ items).float()


def _forwards(work: _Work, queries: Queries, catalogue: np.ndarray, size: int) -> Iterator[Asked]:
    """Of any model: many candidates of few queries, since a query's own side is computed once per call."""
    rows, cuts = max(1, PAIRS // max(1, len(catalogue))), np.arange(PAIRS, len(catalogue), PAIRS)

    def scores(block: Queries) -> Tensor:
        parts = [
            torch.cat([work.model(work.batch(few, np.tile(some, (len(few), 1)))).logit for some in np.split(catalogue, cuts)], 1)
            for few in block.blocks(rows)
        ]
        return torch.cat(parts).float()

    return ((block, partial(scores, block)) for block in queries.blocks(size))


def _ranking(
    work: _Work, block: Queries, catalogue: np.ndarray, hidden: list[tuple[np.ndarray, np.ndarray]], scores: Tensor
) -> dict[str, np.ndarray]:
    """Columns of one block from its scores (Q, n), which are overwritten: each query's kept items, best first.

    Hidden are pairs of items and queries of the block: what a user has chosen before.
    """
    query = np.repeat(np.arange(len(block)), np.diff(block.offsets))
    column, there = places(catalogue, block.item)
    at = _pair(scores, query[there], column[there])
    held = scores[at]
    for hide, hider in hidden:
        place, known = places(catalogue, hide)
        scores[_pair(scores, hider[known], place[known])] = -torch.inf
    scores[at] = held  # seen before, but relevant now: not hidden
    rank, tied, value = np.full(len(query), np.inf), np.ones(len(query), np.int64), np.full(len(query), WORST, np.float32)
    rank[there], tied[there], value[there] = (t.cpu().numpy() for t in (*ranks(scores, *at), held))
    top, top_column, top_value, top_rank, top_tied = (t.cpu().numpy() for t in best(scores, min(work.k, len(catalogue))))
    # Relevant items come first, so that of two equal pairs theirs is the one kept.
    found = {
        "query": np.concatenate([query, top]),
        "item": np.concatenate([block.item, catalogue[top_column]]),
        "row": np.concatenate([block.row, np.full(len(top), -1)]),
        "label": np.concatenate([block.label, np.zeros(len(top), np.float32)]),
        "score": np.concatenate([value, top_value]),
        "rank": np.concatenate([rank, top_rank]),
        "tied": np.concatenate([tied, top_tied]),
    }
    _, kept = np.unique(found["query"] << 31 | found["item"], return_index=True)
    kept = kept[np.lexsort((found["rank"][kept], found["query"][kept]))]
    return _columns(work.dataset, block, **{name: values[kept] for name, values in found.items()})


def _pair(scores: Tensor, query: np.ndarray, column: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(query).to(scores.device), torch.from_numpy(column).to(scores.device)


def _columns(
    dataset: Dataset, block: Queries, query: np.ndarray, item: np.ndarray, row: np.ndarray, label: np.ndarray, **values: np.ndarray
) -> dict[str, np.ndarray]:
    """Columns of ranked items; ``query`` is a position in the block."""
    user = block.user[query]
    domain = np.full(len(query), block.domain)
    columns = {"row": row, "group": block.group[query], "user": user, "item": item, "domain": domain, "label": label}
    return columns | values | {"relevant": block.relevant[query]}


def _finished(dataset: Dataset, blocks: Iterable[dict[str, np.ndarray]]) -> pl.DataFrame:
    """Columns in their types, with the names of the domains and the states of the users."""
    names = pl.Series(dataset.schema.domain_names, dtype=pl.String)
    frames = []
    for columns in blocks:
        texts = {"domain": names[columns["domain"]], "state": _states(dataset, columns["user"], columns["domain"])}
        frame = columns | texts
        # Not by a select with casts: its threads would wait for cores that scoring has.
        frames.append(pl.DataFrame({name: frame[name] for name in TYPES if name in frame}, schema_overrides=TYPES))
    if not frames:
        raise DataError("nothing to score", "events of this part in these domains", "choose another part or other domains")
    return pl.concat(frames)


def _states(dataset: Dataset, user: np.ndarray, domain: np.ndarray) -> pl.Series:
    """How much training tells of each row's user: in the domain, or, of users held out of it, in the others."""
    own = dataset.events_of(user, domain)
    if dataset.manifest["split"]["rule"] != COLD_USERS:
        return pl.Series(STATES)[np.digitize(own, (1, FEW + 1))]
    events = sum(dataset.events_of(user, d) for d in range(len(dataset.schema.domains))) - own
    return pl.Series(SOURCE_STATES)[np.digitize(events, SOURCE_BOUNDS)]


def _kind(dataset: Dataset, part: str, candidates: str) -> Literal["lists", "full", "sampled"]:
    if candidates == "auto":
        return "full" if dataset.candidates(part) is None else "lists"
    if candidates not in ("lists", "full", "sampled"):
        raise ConfigError(
            f"candidates {candidates!r}", "auto, lists, full or sampled", nearest(candidates, ("auto", "lists", "full", "sampled"))
        )
    return candidates


def _list_names(dataset: Dataset, part: str, kind: str, sampled: int, domains: tuple[int, ...]) -> dict[str, str]:
    names = [dataset.schema.domain_names[d] for d in domains]
    given = dataset.candidates(part)
    if kind == "sampled" or given is None:
        return dict.fromkeys(names, f"{sampled} sampled items")
    return {name: given.names.get(name, given.name) for name in names}
