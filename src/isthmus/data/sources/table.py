"""Your own events in parquet, csv, tsv or Arrow files, read lazily: one file, several, a folder or a pattern."""

from __future__ import annotations

import glob
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from isthmus.data.events import read_events
from isthmus.data.sources._files import Loaded, reading
from isthmus.errors import ColumnError, SourceError, nearest
from isthmus.schema import Field, LabelKind

ORIGIN = "your own files: one row per event, with a user, an item and a domain (or one file per domain)"

SUFFIXES = (".parquet", ".pq", ".csv", ".tsv", ".csv.gz", ".tsv.gz", ".arrow", ".feather", ".ipc")

PathLike = str | Path
Side = PathLike | Sequence[PathLike] | pl.DataFrame


def load(
    path: PathLike | Sequence[PathLike],
    *,
    user: str = "user",
    item: str = "item",
    domain: str | None = "domain",
    time: str | None = None,
    label: str | None = None,
    label_kind: LabelKind | None = None,
    behaviour: str | None = None,
    behaviours: Sequence[str] | None = None,
    context: Sequence[str | Field] = (),
    users: Side | None = None,
    user_id: str | None = None,
    user_fields: Sequence[str | Field] | None = None,
    items: Side | None = None,
    item_id: str | None = None,
    item_fields: Sequence[str | Field] | None = None,
    time_unit: str = "s",
    domains: Sequence[str] | None = None,
) -> Loaded:
    """Events from files of one kind.  Columns that are not named here are not read.

    Args:
        path: a file, a folder, a pattern such as ``logs/2024-*.parquet``, or a list of these.
        user, item: columns of the ids.  In csv files ids are always text, so leading zeros stay.
        domain: column of the domain; None takes each file's name without its suffix.
        time: column of the time: whole numbers in ``time_unit``, or a date or datetime.
        label, label_kind: column of the label, and ``click``, ``rating`` or ``implicit`` (default: from its values).
        behaviour, behaviours: column of the behaviour type, and its names in order.
        context: columns that vary by event.
        users, items: side tables: files as in ``path``, or a frame.
        user_id, item_id: id columns of the side tables; default as in the events.
        user_fields, item_fields: their fields; default all columns but the id.
        time_unit: ``s``, ``ms``, ``us``, ``ns`` or ``step``.
        domains: order of the domains; default sorted.

    Raises:
        SourceError: nothing there, files of several kinds or schemas, or a damaged file.
        ColumnError: a column is missing or has the wrong type.
        DataError: see ``read_events``.
    """
    wanted = [column for column in (user, item, domain, time, label, behaviour, *_names(context)) if column is not None]
    frame = scan(path, wanted, ids=[user, item, domain], domain=domain)
    user_table, item_table = _side(users, user_id or user), _side(items, item_id or item)
    with reading(path if isinstance(path, str | Path) else ", ".join(map(str, path))):
        events = read_events(
            frame,
            user=user,
            item=item,
            domain=domain or "domain",
            time=time,
            label=label,
            label_kind=label_kind,
            behaviour=behaviour,
            behaviours=behaviours,
            context=context,
            users=user_table,
            user_id=user_id or user,
            user_fields=_fields(user_table, user_id or user, user_fields),
            items=item_table,
            item_id=item_id or item,
            item_fields=_fields(item_table, item_id or item, item_fields),
            time_unit=time_unit,
            domains=domains,
        )
    return Loaded(events)


def scan(
    path: PathLike | Sequence[PathLike],
    columns: Sequence[str] | None = None,
    *,
    ids: Sequence[str | None] = (),
    domain: str | None = "domain",
) -> pl.LazyFrame:
    """The files as one lazy frame.

    Args:
        path: as in ``load``.
        columns: the columns to read; None reads all.
        ids: columns read as text from csv files.
        domain: None adds a column ``domain`` with each file's name without its suffix.

    Raises:
        SourceError, ColumnError: as in ``load``.
    """
    files = find(path)
    frames, schemas = [], []
    for file in files:
        frame, schema = _open(file, [name for name in ids if name])
        keep = list(schema) if columns is None else list(dict.fromkeys(columns))
        _check_columns(file, keep, schema)
        frames.append(frame.select(keep) if domain else frame.select(*keep, pl.lit(_stem(file)).alias("domain")))
        schemas.append({name: schema[name] for name in keep})
    for file, schema in zip(files[1:], schemas[1:], strict=True):
        _check_same(files[0], schemas[0], file, schema)
    return frames[0] if len(frames) == 1 else pl.concat(frames, how="vertical_relaxed")


def find(path: PathLike | Sequence[PathLike]) -> list[Path]:
    """The files that a path, folder, pattern or list of these means: sorted, and all of one kind.

    Raises:
        SourceError: nothing there, or files of several kinds.
    """
    if not isinstance(path, str | Path):
        files = [file for one in path for file in find(one)]
        if not files:
            raise SourceError("an empty list of files", "at least one file", "name one")
    elif Path(path).is_dir():
        files = sorted(file for file in Path(path).iterdir() if _suffix(file) and file.is_file())
        if not files:
            raise SourceError(f"the folder {path} holds no data file", f"files ending in {', '.join(SUFFIXES)}", "name the right folder")
    elif Path(path).is_file():
        files = [Path(path)]
    else:
        files = sorted(Path(file) for file in glob.glob(str(path), recursive=True))
        if not files:
            what = f"no file matches {path}" if glob.has_magic(str(path)) else f"{path} does not exist"
            raise SourceError(what, "a file, a folder or a pattern", _neighbours(Path(path)))
    kinds = {_reader(file) for file in files}
    if len(kinds) > 1:
        raise SourceError(
            f"files of several kinds: {', '.join(str(f) for f in files[:6])}", "files of one kind", "name one kind: folder/*.csv"
        )
    return files


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return f"check the path: the folder {path.parent} does not exist either"
    names = [file.name for file in path.parent.iterdir() if _suffix(file)]
    return nearest(path.name, names) if names else f"check the path: {path.parent} holds no data file"


def _suffix(file: Path) -> str | None:
    return next((suffix for suffix in SUFFIXES if file.name.lower().endswith(suffix)), None)


def _stem(file: Path) -> str:
    return file.name[: -len(_suffix(file) or "")]


def _reader(file: Path) -> Callable[..., pl.LazyFrame]:
    suffix = _suffix(file)
    if suffix is None:
        raise SourceError(f"{file} has an unknown ending", f"one of {', '.join(SUFFIXES)}", "convert it, or rename it")
    kind = suffix.split(".")[1]
    return {"csv": _csv, "tsv": _tsv}.get(kind, pl.scan_parquet if kind in ("parquet", "pq") else pl.scan_ipc)


def _csv(file: Path, **options: Any) -> pl.LazyFrame:
    return pl.scan_csv(file, infer_schema_length=10_000, **options)


def _tsv(file: Path, **options: Any) -> pl.LazyFrame:
    return _csv(file, separator="\t", **options)


def _open(file: Path, text: list[str]) -> tuple[pl.LazyFrame, pl.Schema]:
    """A lazy frame and its columns; csv ids as text, csv dates and datetimes as such."""
    reader = _reader(file)
    with reading(file):
        if reader not in (_csv, _tsv):
            frame = reader(file)
            return frame, frame.collect_schema()
        names = reader(file).collect_schema().names()
        frame = reader(file, schema_overrides={name: pl.String for name in text if name in names}, try_parse_dates=True)
        return frame, frame.collect_schema()


def _check_columns(file: Path, wanted: Sequence[str], schema: pl.Schema) -> None:
    for name in wanted:
        if name not in schema:
            raise ColumnError(f"{file} has no column {name!r}", f"one of {', '.join(schema)}", nearest(name, schema))


def _check_same(first: Path, expected: dict[str, pl.DataType], file: Path, found: dict[str, pl.DataType]) -> None:
    """Numbers of different widths may be mixed; text and numbers may not."""
    for name, dtype in found.items():
        if dtype != expected[name] and not (dtype.is_numeric() and expected[name].is_numeric()):
            raise SourceError(
                f"column {name!r} is {dtype} in {file} and {expected[name]} in {first}", "the same type in all files", "convert one of them"
            )


def _side(table: Side | None, key: str) -> pl.DataFrame | None:
    if table is None or isinstance(table, pl.DataFrame):
        return table
    frame = scan(table, ids=[key])
    with reading(str(table)):
        return frame.collect()


def _names(fields: Sequence[str | Field]) -> list[str]:
    return [field.name if isinstance(field, Field) else field for field in fields]


def _fields(table: pl.DataFrame | None, key: str, fields: Sequence[str | Field] | None) -> Sequence[str | Field]:
    if fields is not None or table is None:
        return fields or ()
    return [name for name in table.columns if name != key]
