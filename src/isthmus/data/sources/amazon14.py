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
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

from isthmus.data.sources import _amazon
from isthmus.data.sources._files import Loaded

ORIGIN = (
    "'Amazon product data' (2014) on Julian McAuley's page of data sets at UC San Diego: ratings_<Category>.csv or "
    "reviews_<Category>_5.json.gz, and meta_<Category>.json.gz"
)


def _product(line: str) -> _amazon.Product:
    """Categories (those of all its paths, each once), brand and price, as far as a line tells."""
    product = cast("dict[str, Any]", ast.literal_eval(line.strip()))
    listed = dict.fromkeys(str(category) for path in product.get("categories") or () for category in path)
    price = product.get("price")
    return list(listed), product.get("brand") or None, None if price is None else float(price)


YEAR = _amazon.Year(
    ("amazon14", "amazon2014", "amazon14_grocery_kitchen"),
    ORIGIN,
    "ratings_{}.csv",
    "reviews_{}_5.json",
    ("reviewerID", "asin", "overall", "unixReviewTime"),
    _product,
)


def load(
    path: str | Path | None = None,
    *,
    domains: Sequence[str] | str = ("Movies_and_TV", "CDs_and_Vinyl"),
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
        path: the folder; None searches ``$ISTHMUS_DATA`` for ``amazon14``, ``amazon2014`` or ``amazon14_grocery_kitchen``.
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
        ordered: the time is an event's place among all of the user's, whose days alone are known: so that of two events of
            a day one is before the other, as next-item protocols have it that go by places.

    Returns:
        Events; ``dropped`` counts what was left out and why.

    Raises:
        SourceError: a file is missing or damaged, or nothing is left.
        ConfigError: an unknown category or label, a number out of range, or ratings asked of files without any.
    """
    return _amazon.load(
        YEAR,
        path,
        domains=domains,
        core=core,
        label=label,
        click_at=click_at,
        min_user_events=min_user_events,
        common_users=common_users,
        overlap=overlap,
        seed=seed,
        metadata=metadata,
        timed=timed,
        ordered=ordered,
    )
