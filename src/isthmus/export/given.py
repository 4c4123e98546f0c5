"""What the command line names by a path: the data of a run, titles, and a comparison's verdicts."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from isthmus.errors import ConfigError, SourceError, nearest
from isthmus.run import read_facts


def data_of(run: Path) -> Path:
    """Where the data of a run were when it was trained.

    Raises:
        ConfigError: it does not say, or they are there no more.
    """
    told = read_facts(run).get("data")
    if told is None or not Path(told).is_dir():
        raise ConfigError(f"the data of {run}: {told}", "the folder it was fitted on", "say where it is: --data FOLDER")
    return Path(told)


def titles_of(told: str) -> dict[str, str]:
    """``file:item:title`` -> titles by item id.

    Raises:
        ConfigError: not of that form, or no such columns.
        SourceError: no such file.
    """
    path, _, columns = told.partition(":")
    item, _, title = columns.partition(":")
    if not item or not title:
        raise ConfigError(f"titles {told!r}", "FILE:ITEM:TITLE, a file and the names of two columns", "such as items.parquet:item:title")
    if not Path(path).is_file():
        raise SourceError(f"{path} is missing", "a parquet or csv file with titles", "check the path")
    frame = pl.read_csv(path, infer_schema=False) if path.endswith(".csv") else pl.read_parquet(path)
    for name in (item, title):
        if name not in frame.columns:
            raise ConfigError(f"no column {name!r} in {path}", f"one of {frame.columns}", nearest(name, frame.columns))
    known = frame.select(pl.col(item).cast(pl.String), pl.col(title).cast(pl.String)).drop_nulls()
    return dict(known.iter_rows())


def ledger_of(folder: Path) -> pl.DataFrame:
    """The verdicts of a comparison.

    Raises:
        SourceError: no comparison's folder.
    """
    path = folder / "ledger.parquet"
    if not path.is_file():
        raise SourceError(f"{path} is missing", "a folder made by `isthmus compare`", "check the path")
    return pl.read_parquet(path)
