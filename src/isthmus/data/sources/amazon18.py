"""Amazon review data of 2018: ratings of products, May 1996 to October 2018 (Ni, Li, McAuley, EMNLP 2019); a domain is a category.

Two kinds of files are read.  Ratings: ``<Category>.csv`` (all of them), lines of product, user, rating 1-5 and unix seconds, of
which only the day is known, without a heading.  5-core: ``<Category>_5.json.gz``, lines of JSON.  Either may be packed (``.gz``)
or not.  With ``metadata`` also ``meta_<Category>.json.gz``, lines of JSON; prices that are no dollars are left out.

Everything else is as in ``amazon14``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

from isthmus.data.sources import _amazon
from isthmus.data.sources._files import Loaded

ORIGIN = (
    "'Amazon review data' (2018) on Jianmo Ni's page, nijianmo.github.io/amazon: <Category>.csv (ratings only) or <Category>_5.json.gz, "
    "and meta_<Category>.json.gz"
)
PRICE = re.compile(r"\$(\d[\d,]*\.?\d*)")


def _product(line: str) -> _amazon.Product:
    """Categories (each once), brand and price, as far as a line tells."""
    product = cast("dict[str, Any]", json.loads(line))
    price = PRICE.fullmatch(str(product.get("price") or ""))
    listed = dict.fromkeys(str(category) for category in product.get("category") or ())
    return list(listed), product.get("brand") or None, None if price is None else float(price[1].replace(",", ""))


YEAR = _amazon.Year(
    ("amazon18", "amazon2018", "amazon18_toys_games"),
    ORIGIN,
    "{}.csv",
    "{}_5.json",
    ("asin", "reviewerID", "overall", "unixReviewTime"),
    _product,
)


def load(
    path: str | Path | None = None,
    *,
    domains: Sequence[str] | str = ("Toys_and_Games", "Video_Games"),
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
        path: the folder; None searches ``$ISTHMUS_DATA`` for ``amazon18``, ``amazon2018`` or ``amazon18_toys_games``.
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
