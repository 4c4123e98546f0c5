"""What would make a data set look easier than it is: columns that know the label, and splits that know the future."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import polars as pl
from scipy.stats import rankdata

from isthmus.data.events import Events
from isthmus.data.split import TEST, TRAIN, VALID, Split
from isthmus.schema import Field

SUSPICIOUS_AUC = 0.95
SUSPICIOUS_CORRELATION = 0.95
ENTITIES = 20  # fewer say nothing about a correlation
LATE_SHARE = 0.05  # of rows or items; less is the ordinary life of a catalogue


@dataclass(frozen=True, slots=True)
class Finding:
    """Something to look at before believing a number.

    Attributes:
        kind: a short, stable name.
        what: what was found, with the numbers.
        do: what to do about it.
    """

    kind: str
    what: str
    do: str


def find(events: Events, split: Split | None) -> list[Finding]:
    """All findings, label leaks first."""
    findings = [*_label_columns(events), *_statistics_columns(events)]
    if split is not None:
        findings += [*_future(events, split), *_repeats(events, split), *_late_items(events, split)]
    return findings


def _label_columns(events: Events) -> Iterator[Finding]:
    """Columns of which one alone almost determines the label."""
    if events.label is None:
        return
    label = events.label > events.label.mean() if events.schema.label == "rating" else events.label > 0.5
    for where, field, values in _columns(events):
        auc = _alone(field, values, label)
        if auc > SUSPICIOUS_AUC:
            yield Finding(
                "column knows the label",
                f"{where} field {field.name!r} alone ranks the labels with AUC {auc:.3f}",
                "leave it out if it is known only after the event",
            )


def _columns(events: Events) -> Iterator[tuple[str, Field, np.ndarray]]:
    """Where, field and one number per event: a category's index (-1 for null), or a value (NaN for null)."""
    for field in events.schema.context:
        column = events.context[field.name]
        values = column.values if field.kind == "numeric" else column.index
        if field.kind != "multi" and values is not None:
            yield "context", field, values
    for where, table, ids, index, entity in (
        ("user", events.users, events.user_ids, events.user, events.schema.user),
        ("item", events.items, events.item_ids, events.item, events.schema.item),
    ):
        if table is not None:
            for field in entity.fields:
                if field.kind != "multi":
                    yield where, field, _by_entity(table, field, ids)[index]


def _by_entity(table: pl.DataFrame, field: Field, ids: pl.Series) -> np.ndarray:
    """One number per entity of ``ids``."""
    column = pl.DataFrame({"id": ids}).join(table.select("id", field.name), on="id", how="left", maintain_order="left")[field.name]
    if field.kind == "numeric":
        return column.cast(pl.Float64).fill_null(np.nan).to_numpy()
    return (column.cast(pl.String).rank("dense").cast(pl.Int64).fill_null(0) - 1).to_numpy()


def _alone(field: Field, values: np.ndarray, label: np.ndarray) -> float:
    """AUC of one column alone; for categories their label rates, learnt on every other row."""
    if field.kind == "numeric":
        missing = np.isnan(values)
        auc = max(_auc(values[~missing], label[~missing]), _auc(missing.astype(np.float64), label))
        return auc if missing.mean() < 0.5 else _auc(missing.astype(np.float64), label)
    code = values.astype(np.int64) + 1
    size = int(code.max()) + 1
    positive = np.bincount(code[::2], weights=label[::2], minlength=size)
    total = np.bincount(code[::2], minlength=size)
    rate = (positive + label.mean()) / (total + 1)
    return _auc(rate[code[1::2]], label[1::2])


def _auc(score: np.ndarray, label: np.ndarray) -> float:
    """Area under the curve, in whichever direction is better; 0.5 when there is one label only."""
    positives = int(label.sum())
    negatives = len(label) - positives
    if not positives or not negatives:
        return 0.5
    auc = (rankdata(score)[label].sum() - positives * (positives + 1) / 2) / (positives * negatives)
    return float(max(auc, 1 - auc))


def _statistics_columns(events: Events) -> Iterator[Finding]:
    """Numeric fields that follow what these very events say about the user or item."""
    for where, table, ids, index, entity in (
        ("user", events.users, events.user_ids, events.user, events.schema.user),
        ("item", events.items, events.item_ids, events.item, events.schema.item),
    ):
        count = np.bincount(index, minlength=len(ids))
        statistics = {"number of events": count.astype(np.float64)}
        if events.label is not None:
            total = np.bincount(index, weights=events.label, minlength=len(ids))
            statistics |= {"sum of labels": total, "mean label": total / np.maximum(count, 1)}
        for field in entity.fields if table is not None else ():
            if field.kind == "numeric" and table is not None:
                values = _by_entity(table, field, ids)
                yield from _following(where, field.name, values, statistics, (count > 0) & ~np.isnan(values))


def _following(where: str, name: str, values: np.ndarray, statistics: dict[str, np.ndarray], rows: np.ndarray) -> Iterator[Finding]:
    if rows.sum() < ENTITIES or np.ptp(values[rows]) == 0:
        return
    for statistic, number in statistics.items():
        if np.ptp(number[rows]) == 0:
            continue
        correlation = float(np.corrcoef(rankdata(values[rows]), rankdata(number[rows]))[0, 1])
        if abs(correlation) > SUSPICIOUS_CORRELATION:
            yield Finding(
                "column looks like a statistic of the events",
                f"{where} field {name!r} follows the {where}'s {statistic} (rank correlation {correlation:.3f})",
                "compute it from training events only, or leave it out",
            )
            return


def _future(events: Events, split: Split) -> Iterator[Finding]:
    """Training events later than the test events they help to predict."""
    train, test = split.part == TRAIN, split.part == TEST
    if events.time is None or not train.any() or not test.any():
        return
    if split.rule == "random":
        yield Finding("random split of timed events", "the split ignores time: models learn from the future", "use the rule global_time")
        return
    latest = np.full(len(events.user_ids), np.iinfo(np.int64).min)
    np.maximum.at(latest, events.user[train], events.time[train])
    own = float((latest[events.user[test]] > events.time[test]).mean())
    anyone = float((events.time[test] < events.time[train].max()).mean())
    if own or anyone:
        yield Finding(
            "training on the future",
            f"rule {split.rule}: {anyone:.1%} of the test events precede some training event, {own:.1%} one of the same user",
            "use the rule global_time where the numbers must hold in production",
        )


def _repeats(events: Events, split: Split) -> Iterator[Finding]:
    """Choices and ratings made before; to see an item twice is the ordinary life of a logged impression."""
    test = split.part == TEST
    if not test.any() or events.schema.label == "click":
        return
    train = split.part == TRAIN
    key = (events.domain.astype(np.int64) * len(events.user_ids) + events.user) * len(events.item_ids) + events.item
    known = np.sort(key[train])
    place = np.minimum(np.searchsorted(known, key[test]), max(0, len(known) - 1))
    share = float((known[place] == key[test]).mean()) if len(known) else 0.0
    if share > LATE_SHARE:
        yield Finding(
            "test events repeat training events",
            f"{share:.1%} of the test events have a user, item and domain that occur together in training",
            "in ranking such items count as seen and are masked: keep one event per pair",
        )


def _late_items(events: Events, split: Split) -> Iterator[Finding]:
    """Ids that only the later parts know."""
    train, later = split.part == TRAIN, (split.part == TEST) | (split.part == VALID)
    for where, index, size, warning in (
        ("items", events.item, len(events.item_ids), "; a catalogue taken from all events would know them too early"),
        ("users", events.user, len(events.user_ids), ""),
    ):
        known, met = np.zeros(size, bool), np.zeros(size, bool)
        known[index[train]], met[index[later]] = True, True
        new = int((met & ~known).sum())
        share = new / max(1, int((met | known).sum()))
        if share > LATE_SHARE:
            yield Finding(
                f"{where} without training events",
                f"{new:,} {where} ({share:.1%}) occur in the later parts only{warning}",
                "give them fields: without, they are strangers to every model",
            )
