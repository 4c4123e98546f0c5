"""Epinions: ratings of products in 27 categories, their times known as one of 11 periods; a domain is a category."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from isthmus.data.sources import _reviews
from isthmus.data.sources._files import Loaded

ORIGIN = "'Epinions' on Jiliang Tang's page of data sets at Michigan State University: rating_with_timestamp.mat and the trust network"

SITE = _reviews.Site(
    name="epinions",
    origin=ORIGIN,
    categories=(
        *("online stores & services", "games", "movies", "books", "music", "personal finance", "electronics", "home and garden"),
        *("computer hardware", "hotels & travel", "restaurants & gourmet", "magazines & newspapers", "software", "media"),
        *("cars & motorsports", "education", "sports & outdoors", "wellness & beauty", "kids & family", "musical instruments"),
        *("business & technology", "pets", "computers & internet", "web sites & internet services", "gifts", "preview categories"),
        "photo & optics",
    ),
    time="time_bin",
    time_unit="step",
)


def load(
    path: str | Path | None = None,
    *,
    domains: Sequence[str] | str = ("movies", "books", "music"),
    label: Literal["rating", "click"] = "rating",
    min_user_events: int = 5,
    trust: bool = False,
    timed: bool = True,
    helpfulness: bool = False,
) -> Loaded:
    """Ratings with their period, 1 to 11, as the time.

    Periods are coarse, and a history holds strictly earlier ones alone: of the users who come from movies to music
    (``cold_users``) half of the ratings to be predicted then have no history in movies at all.  With ``timed=False``
    all of them have one.

    Args:
        path: the folder, original or parquet; None searches ``$ISTHMUS_DATA/epinions``.
        domains: categories in order, or ``"all"``.
        label: ``rating`` (1 to 5), or ``click``: 1 where the rating is 5.
        min_user_events: users with fewer ratings in these domains are dropped.
        trust: give users a multi-valued field ``trusts``, the users they trust.
        timed: False leaves the times out: a history is then the set of everything known of a user elsewhere, whenever it
            happened, as in the usual cold-start protocol (EMCDR, PTUPCDR).
        helpfulness: give events a context field ``past_helpfulness``: how helpful the user's strictly earlier reviews in
            these domains were in the mean, rounded, or ``none``; needs times.

    Returns:
        Events; ``dropped`` counts what was left out and why.

    Raises:
        SourceError: a file is missing or damaged.
        ConfigError: an unknown category or label, or helpfulness without times.
    """
    return _reviews.load(SITE, path, domains, label, min_user_events, trust, timed, helpfulness)
