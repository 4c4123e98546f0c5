"""faiss' approximate searches for large dot products, with items left out by row."""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from isthmus.errors import ConfigError
from isthmus.layers.topk import Pairs

LINKS, CONSTRUCTION = 32, 100  # of hnsw
MOST_SEARCH = 2048  # nodes that hnsw keeps in view, at most
MOST_EXTRA = 1024  # hidden items that a search goes past; rows with more are for an exact search
TRAINING, LEAST = 64, 39  # vectors for each inverted list that the lists are learnt from, and the fewest (faiss warns below)
CELLS = 1 << 22  # results held at once
EQUAL = 1e-5  # relative difference up to which two computations of one score may differ


def installed() -> bool:
    """Whether faiss is there."""
    return importlib.util.find_spec("faiss") is not None


def faiss() -> Any:
    """The library.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # its generated bindings, on some versions of Python
            import faiss
    except ImportError as error:
        do = "pip install 'isthmus[index]', or use the kind 'exact'"
        raise ConfigError("an index of kind 'ivf' or 'hnsw', but faiss is not installed", "it", do) from error
    return faiss


def make(vectors: np.ndarray, kind: str) -> tuple[Any, dict[str, int], str, list[int]]:
    """An ``ivf`` or ``hnsw`` search of vectors (n, d).

    Returns:
        The searcher; its fixed parameters; the name of the one that trades time for recall, and the values worth trying.
    """
    library, (n, dim) = faiss(), vectors.shape
    if kind == "hnsw":
        searcher = library.IndexHNSWFlat(dim, LINKS, library.METRIC_INNER_PRODUCT)
        searcher.hnsw.efConstruction = CONSTRUCTION
        searcher.add(vectors)
        return searcher, {"links": LINKS, "construction": CONSTRUCTION}, "search", _doubling(64, min(MOST_SEARCH, n))
    lists = max(1, min(n // LEAST, 1 << round(np.log2(2 * n**0.5))))
    searcher = library.IndexIVFFlat(library.IndexFlatIP(dim), dim, lists, library.METRIC_INNER_PRODUCT)
    some = np.random.default_rng(0).permutation(n)[: TRAINING * lists]
    searcher.train(vectors[np.sort(some)])
    searcher.add(vectors)
    return searcher, {"lists": lists}, "probes", _doubling(1, max(1, lists // 4))


def look(searcher: Any, kind: str, parameters: Mapping[str, int], queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(Q, k) scores and columns of what is found, best first; -1 where nothing is."""
    library = faiss()
    if kind == "hnsw":
        chosen = library.SearchParametersHNSW(efSearch=max(parameters["search"], k))
    else:
        chosen = library.SearchParametersIVF(nprobe=parameters["probes"])
    return searcher.search(queries, k, params=chosen)


def without(
    searcher: Any, kind: str, parameters: Mapping[str, int], queries: np.ndarray, k: int, hide: Pairs | None, items: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The first k of what is found beside the hidden ones.

    Args:
        searcher, kind, parameters: see ``make``.
        queries: (Q, d).
        k: how many.
        hide: rows and columns, both (P,); each pair once.
        items: how many there are.

    Returns:
        (Q, k) scores (-inf: nothing found) and columns (-1), and the rows that have too few, although there are more.
    """
    score, column = np.full((len(queries), k), -np.inf, np.float32), np.full((len(queries), k), -1, np.int64)
    hidden = np.zeros(len(queries), np.int64) if hide is None else np.bincount(hide[0], minlength=len(queries))
    key = np.zeros(0, np.int64) if hide is None else np.sort(hide[0] << 31 | hide[1])
    for rows, width in _groups(hidden, k, items):
        value, found = look(searcher, kind, parameters, queries[rows], width)
        if len(key) and hidden[rows].any():
            value, found = _first_kept(rows, value, found, key, k)
        score[rows, : found.shape[1]], column[rows, : found.shape[1]] = value[:, :k], found[:, :k]
    score[column < 0] = -np.inf
    short = np.flatnonzero((column >= 0).sum(1) < np.minimum(k, items - hidden))
    return score, column, short


def recall(truth: np.ndarray, found: np.ndarray) -> tuple[float, float]:
    """Mean share of the exact first k that is found, from both scores (Q, k), and its standard error."""
    real = truth > -np.inf
    last = np.min(truth, 1, where=real, initial=np.inf)
    enough = np.where(np.isfinite(last), last - EQUAL * np.abs(last), 0.0)
    share = (found >= enough[:, None]).sum(1)[real.any(1)] / real.sum(1)[real.any(1)]
    if not len(share):
        return 1.0, 0.0
    return float(share.mean()), float(share.std() / len(share) ** 0.5)


def _groups(hidden: np.ndarray, k: int, items: int) -> Iterator[tuple[Any, int]]:
    """Rows that hide about as much, and how many results they ask for; those that hide too much are in no group."""
    if not hidden.any():  # slices: nothing is copied
        step = max(1, CELLS // min(k, items))
        yield from ((slice(start, start + step), min(k, items)) for start in range(0, len(hidden), step))
        return
    extra = np.where(hidden > 0, 1 << np.ceil(np.log2(np.maximum(hidden, 16))).astype(np.int64), 0)
    for size in np.unique(extra[hidden <= MOST_EXTRA]):
        rows, width = np.flatnonzero(extra == size), int(min(k + size, items))
        for start in range(0, len(rows), max(1, CELLS // width)):
            yield rows[start : start + max(1, CELLS // width)], width


def _first_kept(rows: np.ndarray, value: np.ndarray, found: np.ndarray, key: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Results without the hidden ones, moved up."""
    pair = rows[:, None] << 31 | found
    out = (key.take(np.searchsorted(key, pair), mode="clip") == pair) | (found < 0)
    place = np.cumsum(~out, 1) - 1
    kept = ~out & (place < k)
    score, column = np.full((len(rows), k), -np.inf, np.float32), np.full((len(rows), k), -1, np.int64)
    at = kept.nonzero()[0], place[kept]
    score[at], column[at] = value[kept], found[kept]
    return score, column


def _doubling(first: int, last: int) -> list[int]:
    """first, twice that, and so on, up to last."""
    return [first << n for n in range(32) if first << n <= max(first, last)]
