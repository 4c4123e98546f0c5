"""Douban: ratings of books and of music by the same people, without times; a domain is a category.

Two layouts are read.  Plain: ``<domain>.parquet`` or ``<domain>.csv`` with the columns user, item, rating.  Original:
``bookreviews_cleaned.txt`` and ``musicreviews_cleaned.txt``, columns separated by tabs under a heading, of which
``user_id``, ``book_id`` or ``music_id``, and ``rating`` are read.

Users have one id in both domains.  Items are numbered from 1 in each domain, so an item's id here begins with the
name of its domain: book 7 and record 7 have nothing in common.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import polars as pl

from isthmus.data.events import read_events
from isthmus.data.sources._files import Loaded, find_file, find_folder, reading
from isthmus.errors import ColumnError, ConfigError, SourceError, nearest

ORIGIN = (
    "the Douban data that Zhu et al. published with DTCDR (CIKM 2019) and GA-DTCDR (IJCAI 2020), linked from GA-DTCDR's code: "
    "bookreviews_cleaned.txt and musicreviews_cleaned.txt"
)

DOMAINS = ("book", "music")


def load(
    path: str | Path | None = None,
    *,
    domains: Sequence[str] | str = DOMAINS,
    label: Literal["rating", "click"] = "rating",
    min_user_events: int = 1,
    min_item_events: int = 1,
) -> Loaded:
    """Ratings without times: a history is the set of everything known.

    Args:
        path: the folder; None searches ``$ISTHMUS_DATA/douban``.
        domains: ``book`` and ``music``, in order.
        label: ``rating`` (1 to 5), or ``click``: 1 where the rating is 5.
        min_user_events: users with fewer ratings in these domains are dropped.
        min_item_events: items with fewer ratings are dropped first; 6 makes of the original the size that papers use.

    Returns:
        Events; ``dropped`` counts what was left out and why.

    Raises:
        SourceError: a file is missing or damaged.
        ColumnError: a file lacks a column.
        ConfigError: an unknown domain or label.
    """
    if label not in ("rating", "click"):
        raise ConfigError(f"label={label!r}", "'rating' or 'click'", nearest(str(label), ("rating", "click")))
    names = tuple([domains] if isinstance(domains, str) else domains)
    for name in names:
        if name not in DOMAINS:
            raise ConfigError(f"douban has no domain {name!r}", f"one of {', '.join(DOMAINS)}", nearest(name, DOMAINS))
    folder = find_folder(path, ("douban",), ORIGIN)
    frame = pl.concat([_read(folder, name) for name in names])
    kept = frame.filter(pl.col("rating").is_between(1, 5))
    often = kept.filter(pl.len().over("item") >= min_item_events)
    active = often.filter(pl.len().over("user") >= min_user_events)
    if not len(active):
        raise SourceError(f"{folder} holds no rating of {', '.join(names)} that is kept", "ratings from 1 to 5", "lower the least numbers")
    value = pl.col("rating") == 5 if label == "click" else pl.col("rating")
    events = read_events(
        active.with_columns(label=value.cast(pl.Float32)),
        user="user",
        item="item",
        domain="domain",
        label="label",
        label_kind=label,
        domains=tuple(name for name in names if name in active["domain"].unique().to_list()),
    )
    counts = {
        "ratings outside 1 to 5": len(frame) - len(kept),
        f"ratings of items with fewer than {min_item_events} ratings": len(kept) - len(often),
        f"ratings of users with fewer than {min_user_events} ratings": len(often) - len(active),
    }
    events.dropped.update({reason: count for reason, count in counts.items() if count})
    return Loaded(events)


def _read(folder: Path, domain: str) -> pl.DataFrame:
    """One domain: user and item (text), rating, domain."""
    file = find_file(folder, [f"{domain}.parquet", f"{domain}.csv", f"{domain}reviews_cleaned.txt"], ORIGIN)
    user, item = ("user_id", f"{domain}_id") if file.suffix == ".txt" else ("user", "item")
    with reading(file):
        if file.suffix == ".parquet":
            table = pl.read_parquet(file)
        else:
            table = pl.read_csv(file, separator="\t" if file.suffix == ".txt" else ",", infer_schema=False)
    for name in (user, item, "rating"):
        if name not in table.columns:
            raise ColumnError(f"{file} has no column {name!r}", f"one of {', '.join(table.columns)}", nearest(name, table.columns))
    with reading(file):
        return table.select(
            user=pl.col(user).cast(pl.String),
            item=pl.lit(f"{domain} ") + pl.col(item).cast(pl.String),
            rating=pl.col("rating").cast(pl.Float64),
            domain=pl.lit(domain),
        )
