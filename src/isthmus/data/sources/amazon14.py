"""Amazon product data of 2014: ratings of products, May 1996 to July 2014 (McAuley et al., SIGIR 2015); a domain is a category.

Two kinds of files are read.  Ratings: ``ratings_<Category>.csv`` (all of them), lines of user, product, rating 1-5 and
unix seconds, of which only the day is known, without a heading.  5-core: ``reviews_<Category>_5.json.gz`` (users and
products with five or more), lines of JSON, of which ``reviewerID``, ``asin``, ``overall`` and ``unixReviewTime`` are read.
Either may be packed (``.gz``) or not.  With ``metadata`` also ``meta_<Category>.json.gz``, whose lines are literals of
Python, not JSON; they are parsed as literals, which runs no code.

Users and products have one id in all categories.  A review that is in the files of two categories stays in the first one
named: it would else tell one domain the answers of the other.

Left out: ``helpful`` (voted on after the review was written), the review's text, and of the metadata ``salesRank`` and
``related``, which sum up what was bought later.  Even ``price`` and the rest are as they were in July 2014.
"""

from __future__ import annotations

import ast
import gzip
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import polars as pl

from isthmus.data.events import read_events
from isthmus.data.sources._files import Loaded, find_file, find_folder, reading
from isthmus.errors import ConfigError, SourceError, nearest
from isthmus.schema import Field

ORIGIN = (
    "'Amazon product data' (2014) on Julian McAuley's page of data sets at UC San Diego: ratings_<Category>.csv or "
    "reviews_<Category>_5.json.gz, and meta_<Category>.json.gz"
)

FILES = {"ratings": "ratings_{}.csv", "5-core": "reviews_{}_5.json"}  # each also with .gz
COLUMNS = pl.Schema({"reviewerID": pl.String, "asin": pl.String, "overall": pl.Float64, "unixReviewTime": pl.Int64})
FIELDS = (Field("categories", "multi"), Field("brand"), Field("price", "numeric"))
ASIN = re.compile(r"""['"]asin['"]: *['"]([^'"]+)['"]""")


def load(
    path: str | Path | None = None,
    *,
    domains: Sequence[str] | str = ("Movies_and_TV", "CDs_and_Vinyl"),
    core: bool | None = None,
    label: Literal["rating", "click"] = "rating",
    click_at: float = 5.0,
    min_user_events: int = 5,
    common_users: bool = False,
    metadata: bool = False,
    timed: bool = True,
) -> Loaded:
    """Timed ratings (unix seconds).

    Args:
        path: the folder; None searches ``$ISTHMUS_DATA`` for ``amazon14`` or ``amazon2014``.
        domains: categories in order, as the files are named, or ``"all"`` that the folder holds.
        core: True reads the 5-core files, False all ratings; None: all ratings if the folder has them for every domain.
        label: ``rating`` (1 to 5), or ``click``: 1 where the rating is ``click_at`` or more.
        click_at: above 1, at most 5; for clicks alone.
        min_user_events: users with fewer ratings in these domains together are dropped.
        common_users: only users with ratings in every one of the domains.
        metadata: give products the fields categories (multi-valued), brand (categorical) and price (numeric).
        timed: False leaves the times out: a history is then the set of everything known of a user elsewhere.

    Returns:
        Events; ``dropped`` counts what was left out and why.

    Raises:
        SourceError: a file is missing or damaged, or nothing is left.
        ConfigError: an unknown category or label, or a threshold that makes all or none a click.
    """
    if label not in ("rating", "click"):
        raise ConfigError(f"label={label!r}", "'rating' or 'click'", nearest(str(label), ("rating", "click")))
    if not 1 < click_at <= 5:
        raise ConfigError(f"click_at={click_at}", "above 1, at most 5", "5.0 takes the best ratings alone")
    folder = find_folder(path, ("amazon14", "amazon2014"), ORIGIN)
    names, kind = _chosen(folder, domains, core)
    rows = pl.concat([_read(folder, name, kind) for name in names])
    frame, dropped = _clean(rows, ["user", "item", "rating", *(["time"] if timed else [])], min_user_events, names if common_users else ())
    if not len(frame):
        raise SourceError(
            f"{folder} holds no rating of {', '.join(names)} that is kept", "ratings from 1 to 5", "lower what is asked of users"
        )
    value = pl.col("rating") >= click_at if label == "click" else pl.col("rating")
    present = set(frame["domain"].unique())
    events = read_events(
        frame.with_columns(label=value.cast(pl.Float32)),
        user="user",
        item="item",
        domain="domain",
        time="time" if timed else None,
        label="label",
        label_kind=label,
        items=_metadata(folder, names, frame["item"].unique()) if metadata else None,
        item_fields=FIELDS if metadata else (),
        domains=tuple(name for name in names if name in present),
    )
    events.dropped.update(dropped)
    return Loaded(events)


def _chosen(folder: Path, domains: Sequence[str] | str, core: bool | None) -> tuple[tuple[str, ...], str]:
    """The categories, and the kind of files to read for all of them."""
    present = [file.name.removesuffix(".gz") for file in folder.iterdir()]
    found = {kind: {m[1] for name in present if (m := re.fullmatch(file.format("(.+)"), name))} for kind, file in FILES.items()}
    known = sorted(set().union(*found.values()))
    if not known:
        raise SourceError(
            f"{folder} holds no ratings", " or ".join(file.format("<Category>") for file in FILES.values()), f"get the data: {ORIGIN}"
        )
    names = tuple(known) if domains == "all" else tuple([domains] if isinstance(domains, str) else domains)
    for name in names:
        if name not in known:
            raise ConfigError(f"{folder} holds no category {name!r}", f"one of {', '.join(known)}", nearest(name, known))
    kinds = tuple(FILES) if core is None else ("5-core" if core else "ratings",)
    for kind in kinds:
        if found[kind].issuperset(names):
            return names, kind
    lacks = [FILES[kind].format(next(name for name in names if name not in found[kind])) for kind in kinds]
    raise SourceError(
        f"{folder} lacks {' and '.join(lacks)}", "files of one kind for all domains", f"change core, or get the data: {ORIGIN}"
    )


def _read(folder: Path, name: str, kind: str) -> pl.DataFrame:
    """One category: user, item, rating, time, domain; null where a line does not tell."""
    plain = FILES[kind].format(name)
    file = find_file(folder, [plain, f"{plain}.gz"], ORIGIN)
    with reading(file):
        if kind == "5-core":
            rows = pl.scan_ndjson(file, schema=COLUMNS)
        else:
            rows = pl.scan_csv(file, has_header=False, new_columns=list(COLUMNS), infer_schema=False).cast(COLUMNS, strict=False)
        return rows.select(user="reviewerID", item="asin", rating="overall", time="unixReviewTime", domain=pl.lit(name)).collect()


def _clean(rows: pl.DataFrame, needed: Sequence[str], min_user_events: int, common: Sequence[str]) -> tuple[pl.DataFrame, dict[str, int]]:
    """Drops what is no rating, what came before, and users of too little; says how many."""
    whole = rows.drop_nulls(needed)
    valid = whole.filter(pl.col("rating").is_between(1, 5))
    once = valid.unique(["user", "item", "rating", "time"], keep="first", maintain_order=True)
    active = once.filter(pl.len().over("user") >= min_user_events)
    shared = active.filter(pl.col("domain").n_unique().over("user") == len(common)) if common else active
    counts = {
        f"lines without {', '.join(needed)}": len(rows) - len(whole),
        "ratings outside 1 to 5": len(whole) - len(valid),
        "ratings that came twice": len(valid) - len(once),
        f"ratings of users with fewer than {min_user_events} ratings": len(once) - len(active),
        "ratings of users who are not in every domain": len(active) - len(shared),
    }
    return shared, {reason: count for reason, count in counts.items() if count}


def _metadata(folder: Path, names: Sequence[str], wanted: pl.Series) -> pl.DataFrame:
    """The products of the events that the metadata know; those of two categories as in the first."""
    known, rows = set(wanted), {}
    for name in names:
        file = find_file(folder, [f"meta_{name}.json.gz", f"meta_{name}.json"], ORIGIN)
        for item, fields in _products(file, known):
            rows.setdefault(item, fields)
    columns = {"item": pl.String, "categories": pl.List(pl.String), "brand": pl.String, "price": pl.Float64}
    return pl.DataFrame([(item, *fields) for item, fields in rows.items()], columns, orient="row")


def _products(file: Path, wanted: set[str]) -> Iterator[tuple[str, tuple[list[str], str | None, float | None]]]:
    """Item and categories, brand, price of the wanted lines of a file of metadata; the others are not parsed."""
    with reading(file):
        try:
            with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
                for line in lines:
                    found = ASIN.search(line)
                    if found is None:
                        raise ValueError(f"a line without an asin: {line[:80]}")
                    if found[1] in wanted:
                        yield found[1], _fields(ast.literal_eval(line.strip()))
        except (EOFError, zlib.error, SyntaxError, TypeError, AttributeError, RecursionError, MemoryError) as error:
            raise ValueError(str(error)) from error


def _fields(product: dict[str, Any]) -> tuple[list[str], str | None, float | None]:
    """Categories (those of all its paths, each once), brand and price, as far as they are told."""
    listed = dict.fromkeys(str(category) for path in product.get("categories") or () for category in path)
    price = product.get("price")
    return list(listed), product.get("brand") or None, None if price is None else float(price)
