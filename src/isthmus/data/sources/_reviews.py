"""Ciao and Epinions: product reviews by category, with trust between users (Tang et al., WSDM 2012).

Two layouts are read.  Original: ``rating_with_timestamp.mat`` with the columns user, product, category, rating
1-5, helpfulness, time; or ``rating.mat`` with the first five; and ``trustnetwork.mat`` (Epinions also
``epinion_trust_with_timestamp.mat``) with truster and trustee.  Parquet: ``<category>.parquet`` with the columns
user, item, rating, helpfulness and a time, ``all_ratings.parquet`` with a category number as well, and
``trust.parquet`` with truster and trustee.

Helpfulness is voted on after the review was written, so a review's own is never a feature of it.  With ``helpfulness``
an event has the mean of the user's strictly earlier reviews as context.  Their votes are those counted when the site was
crawled: when a vote was given is not told, and some may be later than the event.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from scipy.io import loadmat

from isthmus.data.events import read_events
from isthmus.data.sources._files import Loaded, find_file, find_folder, reading
from isthmus.errors import ConfigError, SourceError, nearest

COLUMNS = ("user", "item", "category", "rating", "helpfulness", "time")
PAST = "past_helpfulness"
TRUST = ("trustnetwork.mat", "epinion_trust_with_timestamp.mat", "trust.mat")


@dataclass(frozen=True, slots=True)
class Site:
    """What tells the two sites apart.

    Attributes:
        name: the folder's usual name.
        origin: where to get the data.
        categories: names in order of their number, from 1.
        time: the parquet files' time column.
        time_unit: its unit.
    """

    name: str
    origin: str
    categories: tuple[str, ...]
    time: str
    time_unit: str


def load(
    site: Site,
    path: str | Path | None,
    domains: Sequence[str] | str,
    label: Literal["rating", "click"],
    min_user_events: int,
    trust: bool,
    timed: bool,
    helpfulness: bool,
) -> Loaded:
    """Reads one of the sites; the arguments are explained at ``ciao.load``."""
    if helpfulness and not timed:
        raise ConfigError("helpfulness=True with timed=False", "times: without them no review is earlier", "leave one of the two out")
    if label not in ("rating", "click"):
        raise ConfigError(f"label={label!r}", "'rating' or 'click'", nearest(str(label), ("rating", "click")))
    folder = find_folder(path, (site.name,), site.origin)
    names = site.categories if domains == "all" else tuple([domains] if isinstance(domains, str) else domains)
    for name in names:
        if name not in site.categories:
            raise ConfigError(
                f"{site.name} has no category {name!r}", f"one of {', '.join(site.categories)}", nearest(name, site.categories)
            )
    original = any((folder / name).is_file() for name in ("rating_with_timestamp.mat", "rating.mat"))
    frame = _original(folder, site) if original else _parquet(folder, site, names, helpfulness)
    frame, dropped = _clean(frame.filter(pl.col("domain").is_in(names)), min_user_events)
    present = set(frame["domain"].unique())
    if not present:
        raise SourceError(f"{folder} holds no rating of {', '.join(names)}", "ratings from 1 to 5", "choose other domains")
    if helpfulness:
        frame = _with_past_helpfulness(frame, folder)
    frame = frame.with_columns(label=pl.col("rating") == 5 if label == "click" else pl.col("rating"))
    users = _trusted(folder, site).filter(pl.col("user").is_in(frame["user"].unique().implode())) if trust else None
    events = read_events(
        frame.with_columns(pl.col("label").cast(pl.Float32)),
        user="user",
        item="item",
        domain="domain",
        time="time" if timed and "time" in frame.columns else None,
        label="label",
        label_kind=label,
        context=(PAST,) if helpfulness else (),
        users=users,
        user_id=None if users is None else "user",
        user_fields=() if users is None else ("trusts",),
        time_unit=site.time_unit,
        domains=tuple(name for name in names if name in present),
    )
    events.dropped.update(dropped)
    return Loaded(events)


def _clean(frame: pl.DataFrame, min_user_events: int) -> tuple[pl.DataFrame, dict[str, int]]:
    """Drops invalid ratings, then users with too few; says how many."""
    valid = frame.filter(pl.col("rating").is_between(1, 5))
    kept = valid.filter(pl.len().over("user") >= min_user_events)
    counts = {
        "ratings outside 1 to 5": len(frame) - len(valid),
        f"ratings of users with fewer than {min_user_events} ratings": len(valid) - len(kept),
    }
    return kept, {reason: count for reason, count in counts.items() if count}


def _with_past_helpfulness(frame: pl.DataFrame, folder: Path) -> pl.DataFrame:
    """A column more: the mean helpfulness of the user's strictly earlier reviews, as a whole number in text, or ``none``."""
    if "time" not in frame.columns:
        raise SourceError(f"{folder} holds ratings without times", "rating_with_timestamp.mat", "get it, or leave helpfulness out")
    votes = pl.col("helpfulness").cast(pl.Float64).fill_nan(None)
    moments = frame.group_by("user", "time").agg(total=votes.sum(), count=votes.count().cast(pl.Int64))
    before = [pl.col(name).cum_sum().over("user", order_by="time") - pl.col(name) for name in ("total", "count")]
    mean = pl.when(before[1] > 0).then(before[0] / before[1])
    moments = moments.select("user", "time", (mean + 0.5).floor().cast(pl.Int64).cast(pl.String).fill_null("none").alias(PAST))
    return frame.join(moments, on=["user", "time"], how="left", maintain_order="left")


def _original(folder: Path, site: Site) -> pl.DataFrame:
    file = find_file(folder, ["rating_with_timestamp.mat", "rating.mat"], site.origin)
    table = _matrix(file)
    if table.shape[1] not in (5, 6):
        raise SourceError(f"{file} has {table.shape[1]} columns", f"5 or 6: {', '.join(COLUMNS)}", f"get the data again: {site.origin}")
    frame = pl.DataFrame({name: table[:, i].astype(np.int64) for i, name in enumerate(COLUMNS[: table.shape[1]])})
    return frame.with_columns(_domain(site)).drop("category")


def _parquet(folder: Path, site: Site, names: Sequence[str], helpfulness: bool) -> pl.DataFrame:
    alone = {name: folder / f"{name}.parquet" for name in names}
    every = folder / "all_ratings.parquet"
    if every.is_file() and not all(file.is_file() for file in alone.values()):
        with reading(every):
            frame = pl.read_parquet(every).with_columns(_domain(site))
    else:
        frames = []
        for name, file in alone.items():
            find_file(folder, [file.name], site.origin)
            with reading(file):
                frames.append(pl.read_parquet(file).with_columns(domain=pl.lit(name)))
        frame = pl.concat(frames)
    with reading(folder):
        more = ("helpfulness",) if helpfulness else ()
        return frame.select("user", "item", "rating", "domain", *more, time=pl.col(site.time).cast(pl.Int64))


def _domain(site: Site) -> pl.Expr:
    names = dict(enumerate(site.categories, 1))
    return pl.col("category").cast(pl.Int64).replace_strict(names, default=None, return_dtype=pl.String).alias("domain")


def _trusted(folder: Path, site: Site) -> pl.DataFrame:
    """One row per truster: user, and the list of users trusted."""
    if (folder / "trust.parquet").is_file():
        with reading(folder / "trust.parquet"):
            edges = pl.read_parquet(folder / "trust.parquet").select("truster", "trustee")
    else:
        table = _matrix(find_file(folder, TRUST, site.origin))
        edges = pl.DataFrame({"truster": table[:, 0].astype(np.int64), "trustee": table[:, 1].astype(np.int64)})
    return edges.group_by(user="truster", maintain_order=True).agg(trusts="trustee")


def _matrix(file: Path) -> np.ndarray:
    """The one matrix in a MATLAB file."""
    with reading(file):
        try:
            variables = loadmat(file)
        except Exception as error:  # damaged files make it raise nearly anything
            raise ValueError(str(error)) from error
    arrays = [value for name, value in variables.items() if not name.startswith("__")]
    matrices = [value for value in arrays if isinstance(value, np.ndarray) and value.ndim == 2]
    if len(matrices) != 1 or matrices[0].dtype.kind not in "iuf":
        raise SourceError(f"{file} holds {len(matrices)} matrices of numbers", "exactly one", "get the data again")
    return matrices[0]
