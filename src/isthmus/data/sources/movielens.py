"""MovieLens-1M: a million ratings with features of users and films; a domain is a genre, a gender, an age group, or all there is.

Original layout: ``ratings.dat``, ``users.dat`` and ``movies.dat``, columns separated by ``::``.  Parquet layout:
``ratings.parquet`` (user_id, item_id, rating, timestamp), ``users.parquet`` (user_id, age, gender, occupation,
zip_code) and ``items.parquet`` (item_id, movie_title, release_year, genre: names separated by blanks).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import polars as pl

from isthmus.data.events import read_events
from isthmus.data.sources._files import Loaded, find_file, find_folder, reading
from isthmus.errors import ConfigError, SourceError, nearest
from isthmus.schema import Field

ORIGIN = "MovieLens 1M at the GroupLens site, grouplens.org/datasets/movielens/1m: ratings.dat, users.dat and movies.dat"

DOMAINS = ("genre", "gender", "age", "all")
PEOPLE = ("gender", "age", "occupation")
MOMENTS = ("hour", "weekday")
FILMS = "films"  # the one domain of ``all``


def load(
    path: str | Path | None = None,
    *,
    domain: Literal["genre", "gender", "age", "all"] = "genre",
    domains: Sequence[str] | None = None,
    label: Literal["rating", "click"] = "rating",
    neutral: bool = True,
    core: int = 0,
    moments: bool = False,
    max_users: int | None = None,
) -> Loaded:
    """Timed ratings (unix seconds).

    Args:
        path: the folder, original or parquet; None searches ``$ISTHMUS_DATA`` for ``movielens``, ``ml-1m`` or ``ml1m``.
        domain: ``genre`` (a film's first genre), the user's ``gender`` or ``age`` group, or ``all``: one domain, ``films``.
        domains: those to keep, in order; None: all, sorted.
        label: ``rating`` (1 to 5), or ``click``: 1 where the rating is 4 or more.
        neutral: False drops ratings of 3, which are neither for nor against; for clicks alone.
        core: users and films with fewer clicks (ratings of 4 or more) than so many are left out, again and again until all have them.
        moments: context fields ``hour`` (0 to 23) and ``weekday`` (1 Monday to 7), UTC.
        max_users: so many users at most, chosen at random but always alike, with all their ratings; None: all 6,040.

    Returns:
        Events; users have the fields gender, age and occupation (without the one that is the domain), items
        genres (multi-valued) and release_year (categorical).

    Raises:
        SourceError: a file is missing or damaged.
        ConfigError: an unknown domain or label, or a domain without ratings.
    """
    for name, value, known in (("domain", domain, DOMAINS), ("label", label, ("rating", "click"))):
        if value not in known:
            raise ConfigError(f"{name}={value!r}", f"one of {', '.join(known)}", nearest(str(value), known))
    if not neutral and label != "click":
        raise ConfigError(f"neutral=False with label={label!r}", "clicks, of which a 3 is neither", 'leave it out, or take label="click"')
    folder = find_folder(path, ("movielens", "ml-1m", "ml1m"), ORIGIN)
    ratings, users, items = _original(folder) if (folder / "ratings.dat").is_file() else _parquet(folder)
    if max_users is not None:
        ratings = _of_some_users(ratings, max_users)
    frame = ratings.join(_domains(domain, users, items), on="item" if domain == "genre" else "user", how="left", maintain_order="left")
    unknown = frame["domain"].null_count()
    found = frame["domain"].drop_nulls().unique().sort().to_list()
    for name in domains or ():
        if name not in found:
            raise ConfigError(f"no ratings in {domain} {name!r}", f"one of {', '.join(found)}", nearest(name, found))
    if domains is not None:
        frame = frame.filter(pl.col("domain").is_null() | pl.col("domain").is_in(list(domains)))
    dropped = {f"ratings without a {domain}": unknown} if unknown else {}
    if core:
        dropped[f"ratings outside the {core}-core"] = len(frame) - len(frame := _core(frame, core))
    if not neutral:
        dropped["ratings of 3"] = len(frame) - len(frame := frame.filter(pl.col("rating") != 3))
    if moments:
        when = pl.from_epoch("time", time_unit="s")
        frame = frame.with_columns(hour=when.dt.hour().cast(pl.String), weekday=when.dt.weekday().cast(pl.String))
    value = pl.col("rating") >= 4 if label == "click" else pl.col("rating")
    events = read_events(
        frame.drop_nulls("domain").with_columns(label=value.cast(pl.Float32)),
        user="user",
        item="item",
        domain="domain",
        time="time",
        label="label",
        label_kind=label,
        context=MOMENTS if moments else (),
        domains=None if domains is None else tuple(domains),
        users=users.with_columns(pl.col("age").cast(pl.String), pl.col("occupation").cast(pl.String)),
        user_id="user",
        user_fields=tuple(name for name in PEOPLE if name != domain),
        items=items,
        item_id="item",
        item_fields=(Field("genres", "multi"), "release_year"),
    )
    events.dropped.update(dropped)
    return Loaded(events)


def _core(ratings: pl.DataFrame, least: int) -> pl.DataFrame:
    """The ratings of users and films that have so many clicks among these very ratings.

    Raises:
        ConfigError: nothing is left.
    """
    rows = -1
    while len(ratings) != rows:
        rows = len(ratings)
        clicks = (pl.col("rating") >= 4).sum()
        ratings = ratings.filter((clicks.over("user") >= least) & (clicks.over("item") >= least))
    if not rows:
        raise ConfigError(f"core={least}: no ratings are left", "a smaller number", "5 is usual")
    return ratings


def _of_some_users(ratings: pl.DataFrame, most: int) -> pl.DataFrame:
    """The ratings of at most so many users."""
    if most < 1:
        raise ConfigError(f"max_users={most}", "1 or more", "raise it, or leave it out for all users")
    users = ratings["user"].unique().sort()
    return ratings.filter(pl.col("user").is_in(users.sample(min(most, len(users)), seed=0).implode()))


def _domains(domain: str, users: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    if domain == "all":
        return users.select("user", domain=pl.lit(FILMS))
    if domain == "genre":
        return items.select("item", domain=pl.col("genres").list.first())
    return users.select("user", domain=pl.col(domain).cast(pl.String))


def _parquet(folder: Path) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Ratings (user, item, rating, time), users (user, gender, age, occupation), items (item, genres, release_year)."""
    tables = []
    for name in ("ratings", "users", "items"):
        file = find_file(folder, [f"{name}.parquet"], ORIGIN)
        with reading(file):
            tables.append(pl.read_parquet(file))
    with reading(folder):
        ratings = tables[0].select("rating", user="user_id", item="item_id", time="timestamp")
        users = tables[1].select("gender", "age", "occupation", user="user_id")
        items = tables[2].select(pl.col("release_year").cast(pl.String), item="item_id", genres=pl.col("genre").str.split(" "))
    return ratings, users, items


def _original(folder: Path) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    ratings = _lines(folder, "ratings.dat", ("user", "item", "rating", "time"))
    users = _lines(folder, "users.dat", ("user", "gender", "age", "occupation", "zip"))
    films = _lines(folder, "movies.dat", ("item", "title", "genres"))
    with reading(folder / "ratings.dat"):
        ratings = ratings.with_columns(pl.all().cast(pl.Int64))
    with reading(folder / "users.dat"):
        users = users.with_columns(pl.col("user").cast(pl.Int64))
    with reading(folder / "movies.dat"):
        items = films.select(
            pl.col("item").cast(pl.Int64),
            genres=pl.col("genres").str.split("|"),
            release_year=pl.col("title").str.extract(r"\((\d{4})\)\s*$"),
        )
    return ratings, users, items


def _lines(folder: Path, name: str, columns: tuple[str, ...]) -> pl.DataFrame:
    """A file whose columns are separated by ``::``."""
    file = find_file(folder, [name], ORIGIN)
    with reading(file):
        text = pl.read_csv(
            file, has_header=False, separator="\x01", quote_char=None, encoding="latin-1", new_columns=["line"], infer_schema=False
        )
    table = text["line"].str.split_exact("::", len(columns) - 1).struct.rename_fields(list(columns)).struct.unnest()
    short = table.filter(pl.col(columns[-1]).is_null())
    if len(short):
        raise SourceError(f"{file} has a line with too few columns: {short.row(0)}", "::".join(columns), f"get the data again: {ORIGIN}")
    return table
