"""XMRec, the cross-market data of the WSDM Cup 2022: users of several markets, few of the items in common.

Reads the original layout (``s1/train_5core.tsv``, ``valid_qrel.tsv``, ``valid_run.tsv``: tab-separated
``userId itemId rating``, and ``userId item,item,...``), or the same tables as parquet files in one folder
(``s1_train_5core.parquet``, ``s1_valid_qrel.parquet``, ``s1_valid_run.parquet`` or, where the published lists are
lost, ``s1_valid_run_REGENERATED.parquet``).

The published validation positives become the test part.  The validation part is ours: one random training event
of each user with at least ``MINIMUM`` of them, in a list with 99 items drawn uniformly from the market's catalogue,
the user's own items excepted.  Where a market has no lists at all, they are drawn by the same rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from isthmus.data.events import Events, read_events
from isthmus.data.sources._files import Loaded, find_file, find_folder, reading
from isthmus.data.sources._lists import Queries, draw_lists, held_out
from isthmus.data.split import TEST, TRAIN, VALID, Candidates, Split, given
from isthmus.errors import SourceError

ORIGIN = "the folder DATA of the GitHub repository hamedrab/wsdm22_cup_xmrec (WSDM Cup 2022, cross-market recommendation)"

MINIMUM = 3  # training events a user needs to give one to validation
NEGATIVES = 99
REAL, REGENERATED, DRAWN = "real lists", "regenerated lists", "lists drawn by us"
VALIDATION = "validation lists drawn by us"


@dataclass(frozen=True, slots=True)
class _Market:
    """One market's tables: train and positive (user, item); lists (user, items) or None."""

    name: str
    train: pl.DataFrame
    positive: pl.DataFrame
    lists: pl.DataFrame | None
    lists_name: str


def load(path: str | Path | None = None, *, markets: Sequence[str] = ("s1", "s2", "s3"), valid_seed: int = 0) -> Loaded:
    """Implicit, untimed events with the data set's own test part and candidate lists.

    Args:
        path: the folder, original or parquet; None searches ``$ISTHMUS_DATA/xmrec``.
        markets: the domains, in order.
        valid_seed: seed of the validation part, and of lists that are drawn because none are given.

    Returns:
        Events and a split whose ``test`` lists are named, per market, ``real lists``, ``regenerated lists`` or
        ``lists drawn by us``.

    Raises:
        SourceError: a file is missing or damaged, or a list lacks its positive.
    """
    folder = find_folder(path, ("xmrec", "wsdm22_cup_xmrec"), ORIGIN)
    folder = folder / "DATA" if (folder / "DATA").is_dir() else folder
    read = [_read_market(folder, name) for name in markets]
    frame = pl.concat([_rows(market) for market in read])
    listed = [market.lists["items"].explode().unique() for market in read if market.lists is not None]
    events = read_events(
        frame.select("user", "item", "domain"),
        user="user",
        item="item",
        domain="domain",
        domains=tuple(markets),
        extra_items=pl.concat(listed).unique() if listed else None,
    )
    events.dropped.update(_without_positive(read))
    return Loaded(events, _split(events, read, frame["test"].to_numpy(), valid_seed))


def _read_market(folder: Path, name: str) -> _Market:
    if (folder / name).is_dir():
        place = folder / name
        lists = _read_lists(place / "valid_run.tsv") if (place / "valid_run.tsv").is_file() else None
        train, positive = _read_tsv(place, "train_5core.tsv"), _read_tsv(place, "valid_qrel.tsv")
        return _Market(name, train, positive, lists, DRAWN if lists is None else REAL)
    train, positive = (_read_parquet(find_file(folder, [f"{name}_{part}.parquet"], ORIGIN)) for part in ("train_5core", "valid_qrel"))
    for suffix, kind in (("", REAL), ("_REGENERATED", REGENERATED)):
        file = folder / f"{name}_valid_run{suffix}.parquet"
        if file.is_file():
            return _Market(name, train, positive, _read_parquet(file, "items"), kind)
    return _Market(name, train, positive, None, DRAWN)


def _read_tsv(folder: Path, name: str) -> pl.DataFrame:
    file = find_file(folder, [name], ORIGIN)
    with reading(file):
        table = pl.read_csv(file, separator="\t", schema_overrides={"userId": pl.String, "itemId": pl.String})
        return table.select(user="userId", item="itemId")


def _read_lists(file: Path) -> pl.DataFrame:
    with reading(file):
        table = pl.read_csv(file, separator="\t", has_header=False, new_columns=["user", "items"], schema_overrides=[pl.String, pl.String])
        return table.select("user", pl.col("items").str.split(","))


def _read_parquet(file: Path, item: str = "item") -> pl.DataFrame:
    with reading(file):
        return pl.read_parquet(file, columns=["user", item])


def _rows(market: _Market) -> pl.DataFrame:
    """The market's events with a column ``test``."""
    parts = [table.select("user", "item", domain=pl.lit(market.name)) for table in (market.train, market.positive)]
    return pl.concat([parts[0].with_columns(test=False), parts[1].with_columns(test=True)])


def _without_positive(markets: Sequence[_Market]) -> dict[str, int]:
    lost = sum(len(m.lists.join(m.positive, on="user", how="anti")) for m in markets if m.lists is not None)
    return {"candidate lists of users without a positive": lost} if lost else {}


def _split(events: Events, markets: Sequence[_Market], test: np.ndarray, seed: int) -> Split:
    part = np.where(test, TEST, TRAIN).astype(np.uint8)
    lists: dict[str, list[Queries]] = {"valid": [], "test": []}
    for d, market in enumerate(markets):
        rng = np.random.Generator(np.random.Philox(key=[seed, d]))
        rows, held = np.flatnonzero((events.domain == d) & ~test), np.flatnonzero((events.domain == d) & test)
        valid = rows[held_out(events.user[rows], events.item[rows], MINIMUM, rng)]
        part[valid] = VALID
        own = events.user[rows], events.item[rows]
        queries = _given_lists(events, market, held) if market.lists is not None else None
        catalogue = np.concatenate([events.item[events.domain == d], queries.item.ravel() if queries else events.item[:0]])
        lists["test"].append(queries or draw_lists(events.user[held], events.item[held], *own, catalogue, NEGATIVES, rng))
        lists["valid"].append(draw_lists(events.user[valid], events.item[valid], *own, catalogue, NEGATIVES, rng))
    names = {"valid": {m.name: VALIDATION for m in markets}, "test": {m.name: m.lists_name for m in markets}}
    candidates = {key: _candidates(lists[key], names[key]) for key in lists}
    split = given(events, part, candidates)
    return replace(split, params={**split.params, "valid_seed": seed, "minimum": MINIMUM, "negatives": NEGATIVES})


def _given_lists(events: Events, market: _Market, held: np.ndarray) -> Queries:
    """The market's own lists, in the order of its positives."""
    users, items = events.user_ids.rename("user"), events.item_ids.rename("item")
    queries = pl.DataFrame({"user": users.gather(events.user[held]), "positive": items.gather(events.item[held])})
    assert market.lists is not None
    joined = queries.join(market.lists, on="user", how="left", maintain_order="left")
    bad = joined.filter(pl.col("items").is_null() | ~pl.col("items").list.contains(pl.col("positive")))
    if len(bad) or joined["items"].list.len().n_unique() != 1:
        who = f"the list of user {bad['user'][0]!r} lacks its positive" if len(bad) else "candidate lists of several lengths"
        raise SourceError(f"market {market.name}: {who}", "lists of one length, each with its positive", f"get the data again: {ORIGIN}")
    width = len(joined["items"][0])
    code = items.search_sorted(joined["items"].explode()).to_numpy()
    return Queries(events.user[held], events.item[held], code.reshape(len(held), width).astype(np.int32))


def _candidates(queries: Sequence[Queries], names: dict[str, str]) -> Candidates:
    """The lists of all markets, one after the other."""
    length = np.concatenate([np.full(len(q.user), q.item.shape[1], np.int64) for q in queries])
    return Candidates(
        user=np.concatenate([q.user for q in queries]).astype(np.int32),
        domain=np.repeat(np.arange(len(queries)), [len(q.user) for q in queries]).astype(np.int16),
        offsets=np.concatenate([np.zeros(1, np.int64), np.cumsum(length)]),
        item=np.concatenate([q.item.ravel() for q in queries]).astype(np.int32),
        label=np.concatenate([(q.item == q.positive[:, None]).ravel() for q in queries]).astype(np.uint8),
        name="; ".join(f"{market}: {name}" for market, name in names.items()),
        names=names,
    )
