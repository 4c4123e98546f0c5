"""``encode``: events and a split -> a ``Dataset`` on disk.  Vocabularies, scalers and counts come from train alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from isthmus import arrow
from isthmus.data.dataset import FORMAT, PART_NAMES, Dataset, file_facts
from isthmus.data.events import Events
from isthmus.data.extend import aligned
from isthmus.data.fields import Coded, code_column, code_entity, load_column
from isthmus.data.history import History
from isthmus.data.rows import Rows
from isthmus.data.split import PARTS, TRAIN, Split
from isthmus.data.vocabulary import Vocabulary, give_codes
from isthmus.errors import SplitError
from isthmus.schema import PADDING, UNKNOWN, Entity, Schema
from isthmus.segments import Segments
from isthmus.storage import whole_folder, write_json

CHUNK = 1 << 21  # rows counted at once


def encode(events: Events, split: Split, path: str | Path, *, overwrite: bool = False, base: Dataset | None = None) -> Dataset:
    """Writes a data set, whole or not at all: an interrupted call leaves nothing behind.

    The same events and split give the same bytes.

    Args:
        events: the events.
        split: which of them train, validate and test.
        path: the folder to write.
        overwrite: replace what is there.
        base: a data set to extend: domains, behaviours, categories and ids that it has trained keep their codes, its scalers
            stay, and what it knows of users and items that these events do not describe is kept.  Domains without events here
            stay in the schema, without rows.

    Raises:
        SplitError: the split was made for other events, or leaves a domain without training events.
        ConfigError: the events cannot extend the base: other fields, labels, or times.
        StorageError: the folder exists already, the disk is full, or the folder cannot be written.
    """
    split.check(events)
    if base is not None:
        events, split = aligned(events, split, base.schema)
    _check_domains(events, split, () if base is None else base.schema.domain_names)
    with whole_folder(path, overwrite=overwrite) as folder:
        user_code, user, users = _entity(folder, events.schema.user, events.user, events.user_ids, events.users, split, base)
        item_code, item, items = _entity(folder, events.schema.item, events.item, events.item_ids, events.items, split, base)
        context = [
            code_column(events.context[f.name], f, split.part == TRAIN, old)
            for f, old in zip(events.schema.context, _learnt(base, "context") or [None] * len(events.schema.context), strict=True)
        ]
        schema = replace(
            events.schema,
            user=user,
            item=item,
            context=tuple(coded.field for coded in context),
            rating_range=_rating_range(events, split, base),
        )
        _write_history(folder / "history", events, split, user_code, item_code)
        for part in PART_NAMES:
            _write_rows(folder / part, events, split.part == PARTS.index(part), user_code, item_code, context)
        train = Rows.load(folder / "train", schema)
        _write_seen(folder, train, schema)
        for name, lists in split.candidates.items():
            replace(lists, user=user_code[lists.user], item=item_code[lists.item]).save(folder / "candidates" / name)
        _write_catalogues(folder, events, split, item_code, schema, base)
        scalers = {"user": users, "item": items, "context": _save_learnt(folder / "context", context)}
        write_json(folder / "manifest.json", _manifest(folder, schema, split, scalers, events, base))
    return Dataset.load(path)


def _check_domains(events: Events, split: Split, trained: tuple[str, ...]) -> None:
    """Every domain has training events, but those in ``trained``, which had them before."""
    count = np.bincount(events.domain[split.part == TRAIN], minlength=len(events.schema.domains))
    empty = [name for name, n in zip(events.schema.domain_names, count, strict=True) if not n and name not in trained]
    if empty:
        raise SplitError(f"domains {empty} have no training events", "some in every domain", "use another rule, or leave these domains out")


def _entity(
    folder: Path, entity: Entity, index: np.ndarray, ids: pl.Series, table: pl.DataFrame | None, split: Split, base: Dataset | None
) -> tuple[np.ndarray, Entity, dict[str, Any]]:
    """Gives out codes, writes vocabulary and coded table.

    Returns:
        The code of each of ``ids``, the entity with sizes, and the scalers by field name.
    """
    count = np.zeros(len(ids), np.int64)
    for begin in range(0, len(index), CHUNK):
        chunk = slice(begin, begin + CHUNK)
        count += np.bincount(index[chunk][split.part[chunk] == TRAIN], minlength=len(ids))
    where = "user" if entity.name == "user" else "item"
    old = None if base is None else {"user": base.user_vocabulary, "item": base.item_vocabulary}[where]
    vocabulary, code = give_codes(ids, count, old)
    vocabulary.save(folder / f"{entity.name}.ids.arrow")
    columns = code_entity(entity, table, vocabulary, None if old is None else (old, _learnt(base, where)))
    for n, coded in enumerate(columns):
        coded.save(folder / entity.name, str(n))
    described = replace(entity, fields=tuple(coded.field for coded in columns), trained=vocabulary.trained, size=vocabulary.size)
    return code, described, _save_learnt(folder / entity.name, columns)


def _learnt(base: Dataset | None, where: Literal["user", "item", "context"]) -> list[Coded]:
    """The base's fields: vocabularies, scalers and, of users and items, the values by code."""
    if base is None:
        return []
    found = []
    for n, field in enumerate({"user": base.schema.user.fields, "item": base.schema.item.fields, "context": base.schema.context}[where]):
        values = np.zeros(0) if where == "context" else load_column(base.path / where, str(n), field)
        offsets, values = values if isinstance(values, tuple) else (None, values)
        vocabulary = None if field.kind == "numeric" else base.field_vocabulary(where, field.name)
        found.append(Coded(field, values, offsets, vocabulary, base.scaler(where, field.name) if vocabulary is None else None))
    return found


def _save_learnt(folder: Path, columns: list[Coded]) -> dict[str, Any]:
    scalers: dict[str, Any] = {}
    for n, coded in enumerate(columns):
        scalers |= coded.save_learnt(folder, str(n))
    return scalers


def _rating_range(events: Events, split: Split, base: Dataset | None) -> tuple[float, float] | None:
    if events.schema.label != "rating" or events.label is None:
        return None
    label = events.label[split.part == TRAIN]
    before = () if base is None else base.schema.rating_range or ()
    return min([float(label.min()), *before]), max([float(label.max()), *before])


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


def _write_catalogues(folder: Path, events: Events, split: Split, item_code: np.ndarray, schema: Schema, base: Dataset | None) -> None:
    """The items of each domain, and the first part in which each is known; a domain without events keeps the base's."""
    parts = [Rows.load(folder / name, schema) for name in PART_NAMES]
    found, absent = [], np.bincount(events.domain, minlength=len(schema.domains)) == 0
    old = np.zeros(0, np.int64) if base is None else _new_codes(folder, base)
    for d in range(len(schema.domains)):
        known = [(rows.item[rows.of(d)], p) for p, rows in enumerate(parts)]
        known += [] if events.shows is None else [(item_code[events.shows[d]], TRAIN)]
        if base is not None and absent[d]:
            known += [(old[base.catalogue(d, name)], p) for p, name in enumerate(PART_NAMES)]
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


def _new_codes(folder: Path, base: Dataset) -> np.ndarray:
    """The code that each of the base's items has now."""
    return np.append([PADDING, UNKNOWN], Vocabulary.load(folder / "item.ids.arrow").encode(base.item_vocabulary.ids))


def _manifest(folder: Path, schema: Schema, split: Split, scalers: dict[str, Any], events: Events, base: Dataset | None) -> dict[str, Any]:
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
        **({} if base is None else {"base": base.schema.fingerprint()}),
        "files": {file.relative_to(folder).as_posix(): file_facts(file) for file in files},
    }
