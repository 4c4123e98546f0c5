"""``write_lists``: everybody's first items in a domain as one parquet file, written block by block."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from isthmus.errors import ConfigError
from isthmus.how import How
from isthmus.index import Index, Kind
from isthmus.model import Model, Retriever
from isthmus.progress import Bar
from isthmus.retrieve import build_index, retrieve
from isthmus.storage import whole_file

if TYPE_CHECKING:
    from isthmus.data.dataset import Dataset

BLOCK = 1 << 12  # users between two writes
FEW = 4_000  # users for whom an approximate index takes longer to build than it saves


def write_lists(
    path: str | Path,
    model: Model,
    dataset: Dataset,
    domain: str,
    users: Sequence[Any] | pl.Series | None = None,
    *,
    k: int = 100,
    index: Index | Kind = "auto",
    exclude_seen: bool = True,
    catalogue: str = "test",
    how: How | None = None,
    progress: bool = True,
) -> tuple[int, str]:
    """Writes columns user, domain, item, rank (from 1) and score, in order of the users given, best first.

    Args:
        path: the file; it appears whole or not at all.
        model, dataset, k, exclude_seen, catalogue, how: see ``retrieve``.
        domain: its name.
        users: ids as in the data, unknown ones too; None: all users with events in the domain.
        index: one that was built before, or which kind to build; ``auto`` builds none for fewer than 4,000 users.
        progress: a bar, when standard error is a terminal.

    Returns:
        The number of rows, and how the items were searched.

    Raises:
        ConfigError: no such domain, no users, an approximate index for a model whose score is no dot product; see ``retrieve``.
        StorageError: the disk is full, or the folder cannot be written.
    """
    d = dataset.schema.domain_index(domain)
    ids = dataset.user_vocabulary.decode(_users_of(dataset, d)) if users is None else pl.Series("user", users)
    if not len(ids):
        raise ConfigError(f"no users for domain {domain!r}", "at least one", "name some")
    if isinstance(index, str):
        index = "exact" if index == "auto" and len(ids) < FEW else index
        if isinstance(model, Retriever) or index not in ("auto", "exact"):
            built = build_index(model, dataset, d, index, k=k, exclude_seen=exclude_seen, catalogue=catalogue, how=how)
        else:
            built = None
    else:
        built = index
    code, rows = dataset.user_vocabulary.encode(ids), 0
    with whole_file(path) as temporary, Bar(progress) as bar:
        writer = None
        bar.begin(f"retrieve {domain}", -(-len(ids) // BLOCK), 0)
        started = time.perf_counter()
        try:
            for block in _blocks(len(ids)):
                found = retrieve(model, dataset, code[block], d, k=k, exclude_seen=exclude_seen, catalogue=catalogue, index=built, how=how)
                table = _frame(dataset, domain, ids[block], found.item, found.score).to_arrow()
                writer = writer or pq.ParquetWriter(temporary, table.schema, compression="zstd")
                writer.write_table(table)
                rows += table.num_rows
                bar.step(block.stop, time.perf_counter() - started)
        finally:
            if writer is not None:
                writer.close()
    return rows, built.note if built is not None else f"every item of the catalogue, through {type(model).__name__}.forward"


def _frame(dataset: Dataset, domain: str, user: pl.Series, item: np.ndarray, score: np.ndarray) -> pl.DataFrame:
    """Rows of a block: (Q,) ids, (Q, k) codes and scores."""
    row, place = np.nonzero(item)
    return pl.DataFrame(
        {
            "user": user.gather(row),
            "domain": pl.Series([domain]).new_from_index(0, len(row)),
            "item": dataset.item_vocabulary.decode(item[row, place]),
            "rank": (place + 1).astype(np.int32),
            "score": score[row, place],
        }
    )


def _users_of(dataset: Dataset, domain: int) -> np.ndarray:
    """Ascending codes of the users with events in the domain."""
    parts = (dataset.part(name) for name in ("train", "valid", "test"))
    return np.unique(np.concatenate([rows.user[rows.of(domain)] for rows in parts]))


def _blocks(users: int) -> Iterator[slice]:
    return (slice(start, min(start + BLOCK, users)) for start in range(0, users, BLOCK))
