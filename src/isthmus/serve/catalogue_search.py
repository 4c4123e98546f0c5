"""What the page looks up: items by title, users by id, and what a user did."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl

from isthmus.schema import FIRST
from isthmus.serve.asks import Ask
from isthmus.serve.bundle import Bundle
from isthmus.serve.engine import Engine


def items_like(bundle: Bundle, d: int, words: str, k: int) -> list[dict[str, Any]]:
    """Items of a domain whose id or title holds the words, the popular ones first; without words the popular ones."""
    catalogue = bundle.catalogues[d]
    code = catalogue.item[catalogue.popular]
    if words:
        texts = [bundle.items.ids.cast(pl.String), *([] if bundle.titles is None else [bundle.titles])]
        held = [text.gather(code - FIRST).str.to_lowercase().str.contains(words.lower(), literal=True).to_numpy() for text in texts]
        code = code[np.any(held, axis=0)]
    code = code[:k]
    return [{"item": name, "title": bundle.title(int(c))} for name, c in zip(bundle.items.names(code), code, strict=True)]


def users_like(bundle: Bundle, words: str, k: int) -> list[Any]:
    """Users whose id holds the words; without words those with the lowest codes, who did most."""
    ids = bundle.users.ids
    if words:
        ids = ids.filter(ids.cast(pl.String).str.to_lowercase().str.contains(words.lower(), literal=True))
    return ids.head(k).to_list()


def history_of(engine: Engine, user: str, k: int) -> dict[str, Any]:
    """A user's latest events by domain, newest first, live ones too."""
    bundle = engine.bundle
    known, stale = engine.users.known([Ask(user)], 0)
    past = known[0].row.past
    domains: dict[str, list[dict[str, Any]]] = {}
    for d, name in enumerate(bundle.domains):
        code = past.item[past.domain == d][::-1][:k]
        domains[name] = [{"item": item, "title": bundle.title(int(c))} for item, c in zip(bundle.items.names(code), code, strict=True)]
    return {"user": user, "domains": domains, "stale": stale}
