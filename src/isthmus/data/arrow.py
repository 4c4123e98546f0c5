"""Columns of numbers in an uncompressed Arrow file, read back as memory-mapped arrays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa

from isthmus.errors import SourceError
from isthmus.storage import whole_file


def write(path: str | Path, columns: Mapping[str, np.ndarray]) -> None:
    """Writes columns of one length, whole or not at all.

    Args:
        path: the file.
        columns: one-dimensional integer or float arrays by name.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    batch = pa.record_batch([pa.array(np.ascontiguousarray(values)) for values in columns.values()], names=list(columns))
    with whole_file(path) as temporary, pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)


def read(path: str | Path) -> dict[str, np.ndarray]:
    """Memory-maps the columns of a file that ``write`` wrote; nothing is copied.

    Returns:
        Read-only arrays by name.

    Raises:
        SourceError: the file is missing, truncated or foreign.
    """
    try:
        batch = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        return {name: batch.column(name).to_numpy(zero_copy_only=True) for name in batch.schema.names}
    except FileNotFoundError:
        raise SourceError(f"{path} is missing", "a file that Isthmus wrote", "check the folder, or encode the data again") from None
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path} cannot be read ({error})", "a whole file that Isthmus wrote", "encode the data again") from error
