"""Amazon 2014, video games and toys, as published with MAN (Lin et al., WSDM 2024): its instances, each a positive and 9 negatives.

Reads parquet files of one folder.  The instances, one a line: ``games_valid`` and ``games_test``, the published ones, and
``toys_test_groups``, a test set of toys made alike.  Columns: ``user``, ``pos_item``, ``timestamp`` (of a day), ``negatives``;
their ``history`` is not read, because the events give the same one.  The published training files are lost.  In their place
stand ``events_<domain>``, rebuilt from the histories of the instances (so that users without one are missing), or
``union_<domain>_upto_2014-07-22``, to which users of the 2018 crawl are added: ``user``, ``item``, ``timestamp`` and, in the
union, ``source``.

For toys no validation is known: as many events of the same months as games has are drawn, each with 9 negatives in proportion to
popularity, as the published ones.  All ten products of such a list were chosen by somebody before: negatives come from what is
known then, and a positive that nobody had chosen would be told by that alone.

Train is what happened before the day of the first published instance, in both domains.  Events from that day on that are no instance
are known: they enter the histories of later rows, and nothing else.

Half of the instances have a history that ends on their own day.  The published order within a day is that of the product
ids, so that an instance's last products of the day have smaller ids than its positive.  This source keeps that order by
default: the events of a day stand a second apart.  A product that a user has in both domains on one day has one moment, and
never tells one domain the answer of the other.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from isthmus.data.events import Events, read_events
from isthmus.data.sources._files import Loaded, find_file, find_folder, reading
from isthmus.data.split import KNOWN, TEST, TRAIN, VALID, Candidates, given
from isthmus.errors import ConfigError, SourceError, nearest

ORIGIN = "the GitHub repository Guanyu-Lin/MAN (files of the paper), its instances and events as parquet files"

DOMAINS = ("games", "toys")
FILES = {"events": "events_{}.parquet", "union": "union_{}_upto_2014-07-22.parquet"}
INSTANCES = {"valid": {"games": "games_valid"}, "test": {"games": "games_test", "toys": "toys_test_groups"}}
LISTS = {  # what the lists of a part are, by domain
    "valid": {"games": "published lists", "toys": "drawn lists of products chosen before"},
    "test": {"games": "published lists", "toys": "lists of the published test groups"},
}
NEGATIVES, SEED = 9, 0  # of the drawn ones
PARTS = {"valid": VALID, "test": TEST}
EVENT = ["user", "item", "domain", "timestamp"]
LATER = "events of the 2018 crawl, of users whose history is published"


def load(
    path: str | Path | None = None,
    *,
    training: Literal["events", "union"] = "events",
    same_day: Literal["ordered", "together"] = "ordered",
) -> Loaded:
    """Implicit events of ``games`` and ``toys``, with the published instances as a split and its lists.

    Args:
        path: the folder; None searches ``$ISTHMUS_DATA/amazon14_man``.
        training: ``events``: those that the published histories tell; ``union``: also events of the 2018 crawl up to the end
            of the data, but none of users whose own history is published in the domain: it would change.
        same_day: ``ordered``: a user's events of a day are a second apart, by product id, and histories are the published
            ones; ``together``: they share the moment of the day, and none is in another's history.

    Returns:
        Events, and a split with lists of both domains.

    Raises:
        SourceError: a file is missing or damaged, or an instance has no event or is there twice.
        ConfigError: an unknown ``training`` or ``same_day``.
    """
    for name, value, known in (("training", training, tuple(FILES)), ("same_day", same_day, ("ordered", "together"))):
        if value not in known:
            raise ConfigError(f"{name}={value!r}", f"one of {known}", nearest(value, known))
    folder = find_folder(path, ("amazon14_man",), ORIGIN)
    log, later = _log(folder, training)
    instances = pl.concat(_instances(folder, part, domain, file) for part, of in INSTANCES.items() for domain, file in of.items())
    instances = pl.concat([instances, _drawn(log, instances)])
    moment = pl.col("timestamp")
    if same_day == "ordered":
        moment += pl.col("item").rank("dense").over("user", "timestamp").cast(pl.Int64) - 1
    frame = log.select("user", "item", "domain", time=moment)
    listed = instances["items"].explode().unique()
    events = read_events(frame, user="user", item="item", domain="domain", time="time", domains=DOMAINS, extra_items=listed)
    if later:
        events.dropped[LATER] = later
    split = given(events, _parts(log, instances), {part: _candidates(events, instances, part) for part in INSTANCES})
    return Loaded(events, replace(split, params={**split.params, "training": training, "same_day": same_day}))


def _log(folder: Path, training: str) -> tuple[pl.DataFrame, int]:
    """The events of both domains, and how many were left out."""
    tables, later = [], 0
    for domain in DOMAINS:
        file = find_file(folder, [FILES[training].format(domain)], ORIGIN)
        with reading(file):
            table = pl.read_parquet(file, columns=["user", "item", "timestamp", *(["source"] if training == "union" else [])])
        if training == "union":
            own = pl.col("source") == "man"
            kept = table.filter(own | ~own.any().over("user"))
            table, later = kept, later + len(table) - len(kept)
        tables.append(table.select("user", "item", "timestamp", domain=pl.lit(domain)).select(EVENT))
    return pl.concat(tables), later


def _instances(folder: Path, part: str, domain: str, name: str) -> pl.DataFrame:
    """A file's instances: columns of their events, ``part``, and ``items``, the positive first."""
    file = find_file(folder, [f"{name}.parquet"], ORIGIN)
    with reading(file):
        table = pl.read_parquet(file, columns=["user", "pos_item", "timestamp", "negatives"]).rename({"pos_item": "item"})
        items = pl.concat_list("item", "negatives")
        return table.select("user", "item", "timestamp", domain=pl.lit(domain), part=pl.lit(part), items=items).select(
            *EVENT, "part", "items"
        )


def _drawn(log: pl.DataFrame, instances: pl.DataFrame) -> pl.DataFrame:
    """Validation instances of toys: events of the months of the published ones of games, and 9 products that others chose before.

    A published negative can be a product that the files at hand do not hold, one drawn here cannot.  So the positive's is one that
    was chosen before too: among new positives (six of ten) "never seen" alone had an AUC of .8.
    """
    published = instances.filter(pl.col("part") == "valid")
    begin, end = published["timestamp"].min(), instances.filter(pl.col("part") == "test")["timestamp"].min()
    toys = log.filter(pl.col("domain") == "toys").sort(EVENT)
    before = toys.filter(pl.col("timestamp") < begin)["item"]
    inside = (pl.col("timestamp") >= begin) & (pl.col("timestamp") < end)
    months = toys.filter(inside & pl.col("item").is_in(before.unique().implode()))
    rng, rows = np.random.default_rng(SEED), []
    own = dict(toys.group_by("user").agg("item").iter_rows())
    for place in np.sort(rng.permutation(len(months))[: len(published)]):
        user, item, day, domain = months.row(int(place))
        known, negatives = set(own[user]), list[str]()
        for other in before.gather(rng.permutation(len(before))):  # an event at random is an item in proportion to popularity
            if other not in known:
                negatives.append(other)
                known.add(other)
            if len(negatives) == NEGATIVES:
                break
        rows.append((user, item, day, domain, "valid", [item, *negatives]))
    return pl.DataFrame(rows, schema=instances.schema, orient="row")


def _parts(log: pl.DataFrame, instances: pl.DataFrame) -> np.ndarray:
    """(N,) the part of each event."""
    found = log.select(EVENT).join(instances.select(*EVENT, "part"), on=EVENT, how="left", maintain_order="left")["part"]
    if len(found) != len(log) or len(found) - found.null_count() != len(instances):
        came = f"{len(instances):,} instances of {len(found) - found.null_count():,} events"
        raise SourceError(came, "an event for each instance, in no two of them", f"get the data again: {ORIGIN}")
    before = log["timestamp"].to_numpy() < instances["timestamp"].min()
    held = found.replace_strict(PARTS, default=KNOWN, return_dtype=pl.UInt8).to_numpy()
    return np.where(before, TRAIN, held).astype(np.uint8)


def _candidates(events: Events, instances: pl.DataFrame, part: str) -> Candidates:
    """The lists of a part, in the order of its instances."""
    own = instances.filter(pl.col("part") == part)
    length = own["items"].list.len().to_numpy().astype(np.int64)
    offsets = np.concatenate([np.zeros(1, np.int64), np.cumsum(length)])
    label = np.zeros(offsets[-1], np.uint8)
    label[offsets[:-1]] = 1
    names = LISTS[part]
    return Candidates(
        user=events.user_ids.search_sorted(own["user"]).to_numpy().astype(np.int32),
        domain=own["domain"].replace_strict(dict(zip(DOMAINS, range(len(DOMAINS)), strict=True)), return_dtype=pl.Int16).to_numpy(),
        offsets=offsets,
        item=events.item_ids.search_sorted(own["items"].explode()).to_numpy().astype(np.int32),
        label=label,
        name="; ".join(f"{domain}: {name}" for domain, name in names.items()),
        names=names,
    )
