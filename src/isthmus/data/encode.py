"""``encode``: events and a split -> a ``Dataset`` on disk.  Vocabularies, scalers and counts come from train alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from isthmus.data import arrow
from isthmus.data.dataset import FORMAT, PART_NAMES, Dataset, file_facts
from isthmus.data.events import Events
from isthmus.data.fields import Coded, code_column, code_entity
from isthmus.data.history import History
from isthmus.data.rows import Rows
from isthmus.data.segments import Segments
from isthmus.data.split import PARTS, TRAIN, Split
from isthmus.data.vocabulary import Vocabulary, frequency_order
from isthmus.errors import SplitError
from isthmus.schema import FIRST, Entity, Schema
from isthmus.storage import whole_folder, write_json

CHUNK = 1 << 21  # rows counted at once


def encode(events: Events, split: Split, path: str | Path, *, overwrite: bool = False) -> Dataset:
    """Writes a data set, whole or not at all: an interrupted call leaves nothing behind.

    The same events and split give the same bytes.

    Args:
        events: the events.
        split: which of them train, validate and test.
        path: the folder to write.
        overwrite: replace what is there.

    Raises:
        SplitError: the split was made for other events, or leaves a domain without training events.
        StorageError: the folder exists already, the disk is full, or the folder cannot be written.
    """
    split.check(events)
    _check_domains(events, split)
    with whole_folder(path, overwrite=overwrite) as folder:
        user_code, user, users = _entity(folder, events.schema.user, events.user, events.user_ids, events.users, split)
        item_code, item, items = _entity(folder, events.schema.item, events.item, events.item_ids, events.items, split)
        context = [code_column(events.context[f.name], f, split.part == TRAIN) for f in events.schema.context]
        schema = replace(
            events.schema,
            user=user,
            item=item,
            context=tuple(coded.field for coded in context),
            rating_range=_rating_range(events, split),
        )
        _write_history(folder / "history", events, split, user_code, item_code)
        for part in PART_NAMES:
            _write_rows(folder / part, events, split.part == PARTS.index(part), user_code, item_code, context)
        train = Rows.load(folder / "train", schema)
        _write_seen(folder, train, schema)
        for name, lists in split.candidates.items():
            replace(lists, user=user_code[lists.user], item=item_code[lists.item]).save(folder / "candidates" / name)
        _write_catalogues(folder, events, split, item_code, schema)
        scalers = {"user": users, "item": items, "context": _save_learnt(folder / "context", context)}
        write_json(folder / "manifest.json", _manifest(folder, schema, split, scalers, events))
    return Dataset.load(path)


def _check_domains(events: Events, split: Split) -> None:
    count = np.bincount(events.domain[split.part == TRAIN], minlength=len(events.schema.domains))
    empty = [name for name, n in zip(events.schema.domain_names, count, strict=True) if not n]
    if empty:
        raise SplitError(f"domains {empty} have no training events", "some in every domain", "use another rule, or leave these domains out")


def _entity(
    folder: Path, entity: Entity, index: np.ndarray, ids: pl.Series, table: pl.DataFrame | None, split: Split
) -> tuple[np.ndarray, Entity, dict[str, Any]]:
    """Gives out codes, writes vocabulary and coded table.

    Returns:
        The code of each of ``ids``, the entity with sizes, and the scalers by field name.
    """
    count = np.zeros(len(ids), np.int64)
    for begin in range(0, len(index), CHUNK):
        chunk = slice(begin, begin + CHUNK)
        count += np.bincount(index[chunk][split.part[chunk] == TRAIN], minlength=len(ids))
    order, trained = frequency_order(count)
    code = np.empty(len(ids), np.int32)
    code[order] = np.arange(FIRST, FIRST + len(ids), dtype=np.int32)
    Vocabulary(ids.gather(order), trained).save(folder / f"{entity.name}.ids.arrow")
    columns = code_entity(entity, table, ids, code, trained)
    for n, coded in enumerate(columns):
        coded.save(folder / entity.name, str(n))
    fields = tuple(coded.field for coded in columns)
    return code, replace(entity, fields=fields, trained=trained, size=FIRST + len(ids)), _save_learnt(folder / entity.name, columns)


def _save_learnt(folder: Path, columns: list[Coded]) -> dict[str, Any]:
    scalers: dict[str, Any] = {}
    for n, coded in enumerate(columns):
        scalers |= coded.save_learnt(folder, str(n))
    return scalers


def _rating_range(events: Events, split: Split) -> tuple[float, float] | None:
    if events.schema.label != "rating" or events.label is None:
        return None
    label = events.label[split.part == TRAIN]
    return float(label.min()), float(label.max())


def _write_rows(
    folder: Path, events: Events, chosen: np.ndarray, user_code: np.ndarray, item_code: np.ndarray, context: list[Coded]
) -> None:
    """A part's columns, one after the other, so that never two of them are in memory."""
    row = np.flatnonzero(chosen)
    row = row[np.argsort(events.domain[row], kind="stable")]
    domain = events.domain[row]
    arrow.write(folder / "domain.arrow", {"value": domain})
    arrow.write(folder / "offsets.arrow", {"value": np.searchsorted(domain, np.arange(len(events.schema.domains) + 1)).astype(np.int64)})
    arrow.write(folder / "row.arrow", {"value": row})
    arrow.write(folder / "user.arrow", {"value": user_code[events.user[row]]})
    arrow.write(folder / "item.arrow", {"value": item_code[events.item[row]]})
    for name, column in (("time", events.time), ("label", events.label)):
        if column is not None:
            arrow.write(folder / f"{name}.arrow", {"value": column[row]})
    if events.behaviour is not None:
        arrow.write(folder / "behaviour.arrow", {"value": events.behaviour[row] + np.int8(1)})
    for n, coded in enumerate(context):
        coded.take(row).save(folder, f"context.{n}")


def _write_history(folder: Path, events: Events, split: Split, user_code: np.ndarray, item_code: np.ndarray) -> None:
    """Positive events that may be looked back at; without times, those of train alone."""
    mask = events.positive()
    mask &= split.in_history() if events.time is not None else split.part == TRAIN
    keep = slice(None) if mask.all() else mask  # a slice copies nothing
    History.write(
        folder,
        user=user_code[events.user[keep]],
        domain=events.domain[keep],
        time=None if events.time is None else events.time[keep],
        item=item_code[events.item[keep]],
        behaviour=None if events.behaviour is None else events.behaviour[keep] + np.int8(1),
        label=events.label[keep] if events.schema.label == "rating" and events.label is not None else None,
        train=split.part[keep] == TRAIN,
        domains=len(events.schema.domains),
    )


def _write_seen(folder: Path, train: Rows, schema: Schema) -> None:
    """Training positives, and numbers of training events, by domain and user."""
    size, parts, keys, counts = schema.user.size, [], [], []
    for d in range(len(schema.domains)):
        own = train.of(d)
        positive = train.positive(schema.label, own)
        parts.append(Segments.build(train.user[own][positive], train.item[own][positive]))
        user, count = np.unique(train.user[own], return_counts=True)
        keys.append(user + np.int64(d) * size)
        counts.append(count)
    Segments.join(parts, size).write(folder / "seen")
    arrow.write(folder / "counts.arrow", {"key": np.concatenate(keys), "count": np.concatenate(counts)})


def _write_catalogues(folder: Path, events: Events, split: Split, item_code: np.ndarray, schema: Schema) -> None:
    """The items of each domain, and the first part in which each is known."""
    parts = [Rows.load(folder / name, schema) for name in PART_NAMES]
    found = []
    for d in range(len(schema.domains)):
        known = [(rows.item[rows.of(d)], p) for p, rows in enumerate(parts)]
        known += [] if events.shows is None else [(item_code[events.shows[d]], TRAIN)]
        for name, lists in split.candidates.items():
            inside = np.repeat(lists.domain == d, np.diff(lists.offsets))
            known.append((item_code[lists.item[inside]], PARTS.index(name)))
        pair = np.unique(np.concatenate([np.unique(item).astype(np.int64) * len(PARTS) + p for item, p in known]))
        item, first = np.unique(pair // len(PARTS), return_index=True)
        found.append((item.astype(np.int32), (pair[first] % len(PARTS)).astype(np.int8)))
    offsets = np.cumsum([0, *(len(item) for item, _ in found)]).astype(np.int64)
    arrow.write(folder / "catalogue.offsets.arrow", {"offset": offsets})
    columns = {name: np.concatenate([pair[n] for pair in found]) for n, name in enumerate(("item", "part"))}
    arrow.write(folder / "catalogue.items.arrow", columns)


def _manifest(folder: Path, schema: Schema, split: Split, scalers: dict[str, Any], events: Events) -> dict[str, Any]:
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    rows = {part: np.diff(arrow.read(folder / part / "offsets.arrow")["value"]).tolist() for part in PART_NAMES}
    return {
        "format": FORMAT,
        "schema": schema.to_dict(),
        "split": {"rule": split.rule, "params": split.params, "hash": split.hash},
        "rows": rows,
        "dropped": events.dropped,
        "scalers": scalers,
        "candidates": sorted(split.candidates),
        "files": {file.relative_to(folder).as_posix(): file_facts(file) for file in files},
    }
