"""``encode``: events and a split -> a ``Dataset`` on disk.  Vocabularies, scalers and counts come from train alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl

from isthmus import arrow
from isthmus.allocator import keep_blocks
from isthmus.data.ahead import relay
from isthmus.data.by_domain import Chunk, Parts, Shown
from isthmus.data.by_user import Block, Users
from isthmus.data.chunks import THREADS, chunks, count
from isthmus.data.dataset import FORMAT, PART_NAMES, Dataset, file_facts
from isthmus.data.events import Events
from isthmus.data.extend import aligned
from isthmus.data.fields import Coded, Coder, code_entity, learn, load_column
from isthmus.data.split import TRAIN, Split, by_part
from isthmus.data.vocabulary import Vocabulary, give_codes
from isthmus.data.widths import Widths
from isthmus.errors import SplitError
from isthmus.schema import PADDING, UNKNOWN, Entity, Schema
from isthmus.segments import Segments
from isthmus.storage import whole_folder, write_json


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
    keep_blocks()
    split.check(events)
    if base is not None:
        events, split = aligned(events, split, base.schema)
    number = by_part(events, split)
    _check_domains(number[TRAIN], events.schema, () if base is None else base.schema.domain_names)
    with whole_folder(path, overwrite=overwrite) as folder:
        user_code, user, users = _entity(folder, events.schema.user, events.user, events.user_ids, events.users, split, base)
        item_code, item, items = _entity(folder, events.schema.item, events.item, events.item_ids, events.items, split, base)
        known, fields = _learnt(base, "context"), events.schema.context
        train = split.part == TRAIN if fields else np.zeros(0, bool)
        context = [learn(events.context[f.name], f, train, known[n].coder if known else None) for n, f in enumerate(fields)]
        schema = replace(
            events.schema,
            user=user,
            item=item,
            context=tuple(coder.field for coder in context),
            rating_range=_rating_range(events, split, base),
        )
        with ExitStack() as stack:
            parts = Parts(stack, folder, events, split, number, context, widths := Widths.of(events))
            blocks = Users(stack, folder, events, split, user_code, widths)
            _write_events(events, user_code, item_code, parts, blocks)
            _write_catalogues(folder, events, split, item_code, parts, Shown(item.size), base)
        for name, lists in split.candidates.items():
            replace(lists, user=user_code[lists.user], item=item_code[lists.item]).save(folder / "candidates" / name)
        scalers = {"user": users, "item": items, "context": _save_learnt(folder / "context", context)}
        write_json(folder / "manifest.json", _manifest(folder, schema, split, scalers, events, base))
    return Dataset.load(path)


def _check_domains(trains: np.ndarray, schema: Schema, trained: tuple[str, ...]) -> None:
    """Every domain has training events, but those in ``trained``, which had them before."""
    empty = [name for name, n in zip(schema.domain_names, trains, strict=True) if not n and name not in trained]
    if empty:
        raise SplitError(f"domains {empty} have no training events", "some in every domain", "use another rule, or leave these domains out")


def _entity(
    folder: Path, entity: Entity, index: np.ndarray, ids: pl.Series, table: pl.DataFrame | None, split: Split, base: Dataset | None
) -> tuple[np.ndarray, Entity, dict[str, Any]]:
    """Gives out codes, writes vocabulary and coded table.

    Returns:
        The code of each of ``ids``, the entity with sizes, and the scalers by field name.
    """
    trains = count(index, len(ids), lambda rows: split.part[rows] == TRAIN)
    where = "user" if entity.name == "user" else "item"
    old = None if base is None else {"user": base.user_vocabulary, "item": base.item_vocabulary}[where]
    vocabulary, code = give_codes(ids, trains, old)
    vocabulary.save(folder / f"{entity.name}.ids.arrow")
    columns = code_entity(entity, table, vocabulary, None if old is None else (old, _learnt(base, where)))
    for n, coded in enumerate(columns):
        coded.save(folder / entity.name, str(n))
    described = replace(entity, fields=tuple(coded.coder.field for coded in columns), trained=vocabulary.trained, size=vocabulary.size)
    return code, described, _save_learnt(folder / entity.name, [coded.coder for coded in columns])


def _learnt(base: Dataset | None, where: Literal["user", "item", "context"]) -> list[Coded]:
    """The base's fields: vocabularies, scalers and, of users and items, the values by code."""
    if base is None:
        return []
    found = []
    for n, field in enumerate({"user": base.schema.user.fields, "item": base.schema.item.fields, "context": base.schema.context}[where]):
        values = np.zeros(0) if where == "context" else load_column(base.path / where, str(n), field)
        offsets, values = values if isinstance(values, tuple) else (None, values)
        vocabulary = None if field.kind == "numeric" else base.field_vocabulary(where, field.name)
        scaler = base.scaler(where, field.name) if vocabulary is None else None
        found.append(Coded(Coder(field, vocabulary, scaler), values, offsets))
    return found


def _save_learnt(folder: Path, coders: list[Coder]) -> dict[str, Any]:
    scalers: dict[str, Any] = {}
    for n, coder in enumerate(coders):
        scalers |= coder.save(folder, str(n))
    return scalers


def _rating_range(events: Events, split: Split, base: Dataset | None) -> tuple[float, float] | None:
    if events.schema.label != "rating" or events.label is None:
        return None
    label = events.label[split.part == TRAIN]
    before = () if base is None else base.schema.rating_range or ()
    return min([float(label.min()), *before]), max([float(label.max()), *before])


def _write_events(events: Events, user_code: np.ndarray, item_code: np.ndarray, parts: Parts, blocks: Users) -> None:
    """Writes all that holds events: they are read once, and then, put in order, by blocks of users.

    Args:
        events: the events.
        user_code, item_code: codes of the users' ids, and of the items'.
        parts, blocks: what is written.
    """

    def read(rows: slice) -> tuple[Chunk, Block, np.ndarray]:
        user, item = user_code.take(events.user[rows]), item_code.take(events.item[rows])
        return parts.read(rows, user, item), *blocks.read(rows, user, item)

    def place(found: tuple[Chunk, Block, np.ndarray]) -> list[Callable[[], None]]:
        return [partial(arrow.put, parts.place(found[0])), partial(arrow.put, blocks.place(*found[1:]))]

    relay(read, chunks(len(events)), place, THREADS)
    blocks.write()


def _write_catalogues(
    folder: Path, events: Events, split: Split, item_code: np.ndarray, parts: Parts, shown: Shown, base: Dataset | None
) -> None:
    """The items of each domain, and the first part in which each is known; a domain without events keeps the base's."""
    listed = {
        name: Segments.build(np.repeat(lists.domain, np.diff(lists.offsets)), item_code[lists.item])
        for name, lists in split.candidates.items()
    }
    domains = len(events.schema.domains)
    kept = dict[int, list[np.ndarray]]()
    if base is not None:
        old = _new_codes(folder, base)
        without = np.flatnonzero(count(events.domain, domains) == 0).tolist()
        kept = {d: [old[base.catalogue(d, name)] for name in PART_NAMES] for d in without}

    def pieces(part: int, domain: int) -> Iterator[np.ndarray]:
        name = PART_NAMES[part]
        yield from parts.items(part, domain)
        if events.shows is not None and part == TRAIN:
            yield item_code[events.shows[domain]]
        if name in listed:
            yield listed[name].gather(np.array([domain]))[0]
        if domain in kept:
            yield kept[domain][part]

    found = [shown.find([pieces(part, d) for part in range(len(PART_NAMES))], parts.rows(d)) for d in range(domains)]
    item, part = map(np.concatenate, zip(*found, strict=True))
    arrow.write(folder / "catalogue.offsets.arrow", {"offset": np.cumsum([0, *(len(items) for items, _ in found)], dtype=np.int64)})
    arrow.write(folder / "catalogue.items.arrow", {"item": item, "part": part})


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
