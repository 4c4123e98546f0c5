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
from typing import Any, cast

from isthmus.data.sources import _amazon

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

load = _amazon.loader(YEAR, ("Movies_and_TV", "CDs_and_Vinyl"))
