"""Ciao: 284,086 ratings of products in 28 categories, 2000 to 2011; a domain is a category."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from isthmus.data.sources import _reviews
from isthmus.data.sources._files import Loaded

ORIGIN = "'Ciao' on Jiliang Tang's page of data sets at Michigan State University: rating_with_timestamp.mat and trustnetwork.mat"

SITE = _reviews.Site(
    name="ciao",
    origin=ORIGIN,
    categories=(
        *("dvds", "books", "beauty", "music", "travel", "food & drink", "sports & outdoors", "entertainment", "health", "ciao café"),
        *("shopping", "internet", "software", "house & garden", "education & careers", "cars", "household appliances"),
        *("telecommunications", "electronics", "musical instruments & equipment", "computers", "cameras", "family", "games", "fashion"),
        *("adult products", "office equipment", "finance"),
    ),
    time="timestamp",
    time_unit="s",
)


def load(
    path: str | Path | None = None,
    *,
    domains: Sequence[str] | str = ("dvds", "books", "music"),
    label: Literal["rating", "click"] = "rating",
    min_user_events: int = 5,
    trust: bool = False,
    timed: bool = True,
    helpfulness: bool = False,
) -> Loaded:
    """Timed ratings (unix seconds; only the day is known).

    Args:
        path: the folder, original or parquet; None searches ``$ISTHMUS_DATA/ciao``.
        domains: categories in order, or ``"all"``.
        label: ``rating`` (1 to 5), or ``click``: 1 where the rating is 5.
        min_user_events: users with fewer ratings in these domains are dropped.
        trust: give users a multi-valued field ``trusts``, the users they trust.
        timed: False leaves the times out: a history is then the set of everything known of a user elsewhere, whenever it
            happened, as in the usual cold-start protocol (EMCDR, PTUPCDR).
        helpfulness: give events a context field ``past_helpfulness``: how helpful the user's strictly earlier reviews in
            these domains were in the mean, rounded, or ``none``; needs times.

    Returns:
        Events whose ``dropped`` counts the zero ratings (invalid) and those of users with too few.

    Raises:
        SourceError: a file is missing or damaged.
        ConfigError: an unknown category or label, or helpfulness without times.
    """
    return _reviews.load(SITE, path, domains, label, min_user_events, trust, timed, helpfulness)
