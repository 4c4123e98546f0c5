"""The rows of an SQL query: a DuckDB or SQLite file, DuckDB over parquet and csv files, or your own connection."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import polars as pl

from isthmus.data.events import read_events
from isthmus.data.sources._files import Loaded, reading
from isthmus.errors import ConfigError, SourceError
from isthmus.schema import LabelKind

ORIGIN = "your own database: a query that gives one row per event"


def load(
    query: str,
    *,
    database: str | Path | None = None,
    connection: Any = None,
    user: str = "user",
    item: str = "item",
    domain: str = "domain",
    time: str | None = None,
    label: str | None = None,
    label_kind: LabelKind | None = None,
    context: tuple[str, ...] = (),
    time_unit: str = "s",
    domains: tuple[str, ...] | None = None,
) -> Loaded:
    """Events from a query.

    Args:
        query: a SELECT statement.
        database: a DuckDB or SQLite file, opened for reading only.  Without it and without ``connection`` DuckDB
            runs the query in memory, so it may name files: ``SELECT * FROM 'events/*.parquet'``.
        connection: an open connection (DB-API, SQLAlchemy, DuckDB) or a URI, as ``polars.read_database`` takes it.
        user, item, domain, time, label, label_kind, context, time_unit, domains: as in ``table.load``.

    Raises:
        ConfigError: both a database and a connection, or DuckDB is needed and not installed.
        SourceError: no such file, or the query fails.
        DataError: see ``read_events``.
    """
    if database is not None and connection is not None:
        raise ConfigError("both database and connection", "one of them", "leave one out")
    frame = _from_connection(query, connection) if connection is not None else _from_file(query, database)
    events = read_events(
        frame,
        user=user,
        item=item,
        domain=domain,
        time=time,
        label=label,
        label_kind=label_kind,
        context=context,
        time_unit=time_unit,
        domains=domains,
    )
    return Loaded(events)


def _from_connection(query: str, connection: Any) -> pl.DataFrame:
    try:
        if isinstance(connection, str):
            return pl.read_database_uri(query, connection)
        return pl.read_database(query, connection, infer_schema_length=None)
    except Exception as error:  # each driver has its own tree of errors
        raise _failed(query, error) from error


def _from_file(query: str, database: str | Path | None) -> pl.DataFrame:
    if database is not None and not Path(database).is_file():
        raise SourceError(f"{database} does not exist", "a DuckDB or SQLite file", "check the path")
    if database is not None and _is_sqlite(Path(database)):
        with closing(sqlite3.connect(f"{Path(database).absolute().as_uri()}?mode=ro", uri=True)) as connection:
            return _from_connection(query, connection)
    return _from_duckdb(query, database)


def _is_sqlite(path: Path) -> bool:
    with reading(path), path.open("rb") as file:
        return file.read(15) == b"SQLite format 3"


def _from_duckdb(query: str, database: str | Path | None) -> pl.DataFrame:
    try:
        import duckdb
    except ImportError:
        raise ConfigError("DuckDB is not installed", "the package duckdb", "pip install 'isthmus[sql]', or pass a connection") from None
    try:
        connection = duckdb.connect(str(database), read_only=True) if database is not None else duckdb.connect()
        with closing(connection):
            return connection.sql(query).pl()
    except duckdb.Error as error:
        raise _failed(query, error) from error


def _failed(query: str, error: Exception) -> SourceError:
    first = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
    return SourceError(
        f"the query failed ({first}): {query[:200]}", "a SELECT that the database accepts", "correct it and try it there first"
    )
