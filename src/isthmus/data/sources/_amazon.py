"""What the loaders of Amazon's ratings share: two kinds of files for each category, users and products of several categories.

Besides the published files, parquet: ``<category>.parquet`` with user, item and timestamp, without ratings, and where its ids are
numbers, ``user_ids.parquet`` (user, reviewer) and ``<category>_item_ids.parquet`` (item, asin).
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl

from isthmus.data.events import read_events
from isthmus.data.sources._files import Loaded, find_file, find_folder, reading
from isthmus.errors import ConfigError, SourceError, nearest
from isthmus.schema import Field

COLUMNS = pl.Schema({"reviewerID": pl.String, "asin": pl.String, "overall": pl.Float64, "unixReviewTime": pl.Int64})
FIELDS = (Field("categories", "multi"), Field("brand"), Field("price", "numeric"))
ASIN = re.compile(r"""['"]asin['"]: *['"]([^'"]+)['"]""")
PARQUET = "{}.parquet"
LABELS = ("rating", "click", "implicit")

Product = tuple[list[str], str | None, float | None]  # categories, brand, price


@dataclass(frozen=True, slots=True)
class Year:
    """One release.

    Attributes:
        names: of the folder.
        origin: where to get it.
        ratings, core: names of the files of all ratings and of the 5-core, ``{}`` for the category; each also with ``.gz``.
        columns: of the ratings, in order.
        product: a line of metadata -> what is read of it.
    """

    names: tuple[str, ...]
    origin: str
    ratings: str
    core: str
    columns: tuple[str, ...]
    product: Callable[[str], Product]

    @property
    def files(self) -> dict[str, str]:
        """Kind of files -> their names."""
        return {"ratings": self.ratings, "5-core": self.core, "parquet": PARQUET}


def loader(year: Year, usual: tuple[str, ...]):  # pyright knows it, down to the arguments
    """The ``load`` of a release.

    Args:
        year: the release.
        usual: its categories where none are named.
    """

    def load(
        path: str | Path | None = None,
        *,
        domains: Sequence[str] | str = usual,
        core: bool | None = None,
        label: Literal["rating", "click", "implicit"] = "rating",
        click_at: float = 5.0,
        min_user_events: int = 5,
        common_users: bool = False,
        overlap: float | None = None,
        seed: int = 0,
        metadata: bool = False,
        timed: bool = True,
        ordered: bool = False,
    ) -> Loaded:
        """Timed ratings (unix seconds).

        Args:
            path: the folder; None searches ``$ISTHMUS_DATA`` for the release's, such as ``amazon14`` or ``amazon18``.
            domains: categories in order, as the files are named, or ``"all"`` that the folder holds.
            core: True reads the 5-core files, False all ratings; None: of all ratings, the 5-core and parquet the first that the folder has
                for every domain.
            label: ``rating`` (1 to 5), ``click``: 1 where the rating is ``click_at`` or more, or ``implicit``: every rating is an event.
            click_at: above 1, at most 5; for clicks alone.
            min_user_events: users with fewer ratings in these domains together are dropped.
            common_users: only users with ratings in every one of the domains.
            overlap: of the users of several domains this share keeps its id in all of them, and every other becomes one user of each
                (``id@domain``): what is left to share when nobody is known elsewhere.  None: all keep it.
            seed: draws who keeps it.
            metadata: give products the fields categories (multi-valued), brand (categorical) and price (numeric).
            timed: False leaves the times out: a history is then the set of everything known of a user elsewhere.
            ordered: a user's events of a day are a second apart, as told, those of all domains together: so that one is before the
                other, as next-item protocols have it that go by places.

        Returns:
            Events; ``dropped`` counts what was left out and why.

        Raises:
            SourceError: a file is missing or damaged, or nothing is left.
            ConfigError: an unknown category or label, a number out of range, or ratings asked of files without any.
        """
        if label not in LABELS:
            raise ConfigError(f"label={label!r}", f"one of {LABELS}", nearest(str(label), LABELS))
        if not 1 < click_at <= 5:
            raise ConfigError(f"click_at={click_at}", "above 1, at most 5", "5.0 takes the best ratings alone")
        if overlap is not None and not 0 <= overlap <= 1:
            raise ConfigError(f"overlap={overlap}", "a share from 0 to 1", "0 gives every domain users of its own")
        if ordered and not timed:
            raise ConfigError("ordered=True with timed=False", "times: the order comes from them", "leave one of the two out")
        folder = find_folder(path, year.names, year.origin)
        names, kind = _chosen(year, folder, domains, core)
        if kind == "parquet" and label != "implicit":
            raise ConfigError(f"label={label!r} for {folder}, whose files have no ratings", "label='implicit'", "or get the ratings")
        rows = pl.concat([_read(year, folder, name, kind) for name in names])
        needed = ["user", "item", *(["rating"] if kind != "parquet" else []), *(["time"] if timed else [])]
        frame, dropped = _clean(rows, needed, min_user_events, names if common_users else ())
        if not len(frame):
            came = f"{folder} holds no rating of {', '.join(names)} that is kept"
            raise SourceError(came, "ratings from 1 to 5", "lower what is asked of users")
        if ordered:
            frame = _in_order(frame)
        if overlap is not None:
            frame = _apart(frame, overlap, seed)
        value = pl.col("rating") >= click_at if label == "click" else pl.col("rating")
        present = set(frame["domain"].unique())
        events = read_events(
            frame.drop("rating") if label == "implicit" else frame.with_columns(label=value.cast(pl.Float32)),
            user="user",
            item="item",
            domain="domain",
            time="time" if timed else None,
            label=None if label == "implicit" else "label",
            label_kind=label,
            items=_metadata(year, folder, names, frame["item"].unique()) if metadata else None,
            item_fields=FIELDS if metadata else (),
            domains=tuple(name for name in names if name in present),
        )
        events.dropped.update(dropped)
        return Loaded(events)

    return load


def _chosen(year: Year, folder: Path, domains: Sequence[str] | str, core: bool | None) -> tuple[tuple[str, ...], str]:
    """The categories, and the kind of files to read for all of them."""
    present = [file.name.removesuffix(".gz") for file in folder.iterdir()]
    found = {kind: {m[1] for name in present if (m := re.fullmatch(file.format("(.+)"), name))} for kind, file in year.files.items()}
    found["parquet"] = {name for name in found["parquet"] if name != "user_ids" and not name.endswith("_item_ids")}
    known = sorted(set().union(*found.values()))
    if not known:
        wanted = " or ".join(file.format("<Category>") for file in (year.ratings, year.core))
        raise SourceError(f"{folder} holds no ratings", wanted, f"get the data: {year.origin}")
    names = tuple(known) if domains == "all" else tuple([domains] if isinstance(domains, str) else domains)
    for name in names:
        if name not in known:
            raise ConfigError(f"{folder} holds no category {name!r}", f"one of {', '.join(known)}", nearest(name, known))
    kinds = tuple(year.files) if core is None else ("5-core" if core else "ratings",)
    for kind in kinds:
        if found[kind].issuperset(names):
            return names, kind
    lacks = [year.files[kind].format(next(name for name in names if name not in found[kind])) for kind in kinds if kind != "parquet"]
    raise SourceError(
        f"{folder} lacks {' and '.join(lacks)}", "files of one kind for all domains", f"change core, or get the data: {year.origin}"
    )


def _read(year: Year, folder: Path, name: str, kind: str) -> pl.DataFrame:
    """One category: user, item, rating, time, order, domain; null where a line does not tell."""
    plain = year.files[kind].format(name)
    file = find_file(folder, [plain, f"{plain}.gz"], year.origin)
    with reading(file):
        if kind == "parquet":
            return _parquet(folder, file, name)
        if kind == "5-core":
            rows = pl.scan_ndjson(file, schema=COLUMNS)
        else:
            rows = pl.scan_csv(file, has_header=False, new_columns=list(year.columns), infer_schema=False).cast(COLUMNS, strict=False)
        told = rows.select(user="reviewerID", item="asin", rating="overall", time="unixReviewTime", domain=pl.lit(name)).collect()
    return told.with_columns(order=pl.lit(0, pl.Int64))


def _parquet(folder: Path, file: Path, name: str) -> pl.DataFrame:
    """The same of a parquet file: ids by their numbers are looked up."""
    rows = pl.read_parquet(file)
    for column, table, number, told in (
        ("user", "user_ids.parquet", "user", "reviewer"),
        ("item", f"{name}_item_ids.parquet", "item", "asin"),
    ):
        if rows.schema[column].is_integer():
            ids = pl.read_parquet(folder / table).select(pl.col(number).cast(rows.schema[column]), pl.col(told).alias("id"))
            rows = rows.join(ids, left_on=column, right_on=number, how="left", maintain_order="left").drop(column).rename({"id": column})
    order = pl.col("pos").cast(pl.Int64) if "pos" in rows.columns else pl.lit(0, pl.Int64)
    return rows.select("user", "item", rating=pl.lit(None, pl.Float64), time=pl.col("timestamp"), domain=pl.lit(name), order=order)


def _in_order(rows: pl.DataFrame) -> pl.DataFrame:
    """A user's events of one time are a second apart: as told, then by domain as read."""
    places = rows.with_row_index("row").select("row", "user", "time", "order").sort("user", "time", "order", "row")
    places = places.select("row", time=pl.col("time") + pl.int_range(pl.len(), dtype=pl.Int64).over("user", "time"))
    return rows.with_columns(places.sort("row")["time"])


def _apart(rows: pl.DataFrame, overlap: float, seed: int) -> pl.DataFrame:
    """Users of several domains become one user of each, but for a share of them."""
    several = rows.group_by("user").agg(n=pl.col("domain").n_unique()).filter(pl.col("n") > 1)["user"].sort()
    drawn = np.random.default_rng(seed).permutation(len(several))[round(overlap * len(several)) :]
    own = pl.col("user").is_in(several.gather(np.sort(drawn)).implode())
    return rows.with_columns(user=pl.when(own).then(pl.concat_str("user", "domain", separator="@")).otherwise("user"))


def _clean(rows: pl.DataFrame, needed: Sequence[str], min_user_events: int, common: Sequence[str]) -> tuple[pl.DataFrame, dict[str, int]]:
    """Drops what is no rating, what came before, and users of too little; says how many."""
    whole = rows.drop_nulls(needed)
    valid = whole.filter(pl.col("rating").is_null() | pl.col("rating").is_between(1, 5))
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


def _metadata(year: Year, folder: Path, names: Sequence[str], wanted: pl.Series) -> pl.DataFrame:
    """The products of the events that the metadata know; those of two categories as in the first."""
    known, rows = set(wanted), {}
    for name in names:
        file = find_file(folder, [f"meta_{name}.json.gz", f"meta_{name}.json"], year.origin)
        for item, fields in _products(year, file, known):
            rows.setdefault(item, fields)
    columns = {"item": pl.String, "categories": pl.List(pl.String), "brand": pl.String, "price": pl.Float64}
    return pl.DataFrame([(item, *fields) for item, fields in rows.items()], columns, orient="row")


def _products(year: Year, file: Path, wanted: set[str]) -> Iterator[tuple[str, Product]]:
    """Item and categories, brand, price of the wanted lines of a file of metadata; the others are not parsed."""
    with reading(file):
        try:
            with gzip.open(file, "rt", encoding="utf-8") if file.suffix == ".gz" else file.open(encoding="utf-8") as lines:
                for line in lines:
                    found = ASIN.search(line)
                    if found is None:
                        raise ValueError(f"a line without an asin: {line[:80]}")
                    if found[1] in wanted:
                        yield found[1], year.product(line)
        except (EOFError, zlib.error, SyntaxError, TypeError, AttributeError, RecursionError, MemoryError) as error:
            raise ValueError(str(error)) from error
