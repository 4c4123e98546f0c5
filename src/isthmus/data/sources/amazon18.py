"""Amazon review data of 2018: ratings of products, May 1996 to October 2018 (Ni, Li, McAuley, EMNLP 2019); a domain is a category.

Two kinds of files are read.  Ratings: ``<Category>.csv`` (all of them), lines of product, user, rating 1-5 and unix seconds, of
which only the day is known, without a heading.  5-core: ``<Category>_5.json.gz``, lines of JSON.  Either may be packed (``.gz``)
or not.  With ``metadata`` also ``meta_<Category>.json.gz``, lines of JSON; prices that are no dollars are left out.

Everything else is as in ``amazon14``.
"""

from __future__ import annotations

import json
import re
from typing import Any, cast

from isthmus.data.sources import _amazon

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

load = _amazon.loader(YEAR, ("Toys_and_Games", "Video_Games"))
