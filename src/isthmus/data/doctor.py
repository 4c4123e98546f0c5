"""What a data set looks like before anything is trained on it: sizes, overlaps, labels, times, cold starts, leaks."""

from __future__ import annotations

import dataclasses
import io
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table
from scipy.sparse import csr_matrix

from isthmus.data import leaks
from isthmus.data import split as splits
from isthmus.data.events import Events
from isthmus.data.leaks import Finding
from isthmus.data.split import TEST, TRAIN, Split
from isthmus.errors import SplitError

FEW = 5  # a user with 1 to FEW training events in a domain has few
SHOWN = 30  # overlaps in the text; to_dict has all
PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


@dataclass(frozen=True, slots=True)
class DomainReport:
    """One domain.

    Attributes:
        name, users, items, events: what occurs in its events.
        density: events / (users * items).
        label_mean: click rate or mean rating; None when implicit.
        first, last: its time span, in the data's unit.
        duplicates: events whose user and item occur in an earlier row of the domain.
        exact_duplicates: events whose user, item and time do; equal to ``duplicates`` when untimed.
        test_users: users of its test events: ``new`` (no training event here), ``few`` (1 to 5) or ``many``.
        cold_users, cold_items: share of its test events whose user or item has no training event anywhere.
    """

    name: str
    users: int
    items: int
    events: int
    density: float
    label_mean: float | None
    first: int | None
    last: int | None
    duplicates: int
    exact_duplicates: int
    test_users: dict[str, int] = field(default_factory=dict)
    cold_users: float | None = None
    cold_items: float | None = None


@dataclass(frozen=True, slots=True)
class Overlap:
    """What two domains have in common: counts, and the shares of each domain's own users or items."""

    domains: tuple[str, str]
    users: int
    user_shares: tuple[float, float]
    items: int
    item_shares: tuple[float, float]


@dataclass(frozen=True, slots=True)
class Report:
    """What ``examine`` found.

    Attributes:
        domains: one report per domain, in order.
        overlaps: every two domains.
        users, items, events: of the whole data set; users and items that occur in events.
        label, time_unit: from the schema; ``time_unit`` is None when untimed.
        split: the rule that cold starts and findings refer to; None when no split can be made.
        parts: events per part.
        findings: what to look at before believing a number.
        dropped: rows the source left out, by reason.
    """

    domains: list[DomainReport]
    overlaps: list[Overlap]
    users: int
    items: int
    events: int
    label: str
    time_unit: str | None
    split: str | None
    parts: dict[str, int]
    findings: list[Finding]
    dropped: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return dataclasses.asdict(self)

    def to_text(self, width: int = 140) -> str:
        """Tables for a terminal."""
        console = Console(file=io.StringIO(), width=width)
        console.print(f"{self.events:,} events, {self.users:,} users, {self.items:,} items, label: {self.label}", highlight=False)
        for table in (_sizes_table(self), _overlap_table(self), _cold_table(self)):
            if table.row_count:
                console.print("", table.caption, highlight=False, markup=False, sep="\n")
                table.caption = None
                console.print(table)
        for reason, count in self.dropped.items():
            console.print(f"left out by the source: {count:,} {reason}", highlight=False, markup=False)
        console.print("\nTo look at before believing a number:" if self.findings else "\nNothing suspicious found.", highlight=False)
        for finding in self.findings:
            console.print(f"- {finding.kind}: {finding.what}\n  to do: {finding.do}", highlight=False, markup=False)
        text = console.file.getvalue() if isinstance(console.file, io.StringIO) else ""
        return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def examine(events: Events, split: Split | None = None) -> Report:
    """Describes a data set and names what would leak.

    Args:
        events: the events.
        split: the split that cold starts and leaks are judged by; None takes the default one.
    """
    findings: list[Finding] = []
    if split is None:
        try:
            split = splits.default(events)
        except SplitError as error:
            findings.append(Finding("no default split", error.came, error.do))
    elif len(split.part) != len(events):
        raise SplitError(f"a split of {len(split.part):,} events for {len(events):,}", "the split of these events", "make it from them")
    users, items = (_presence(events, side) for side in ("user", "item"))
    findings += [*leaks.find(events, split), *_odd_domains(events)]
    parts = {} if split is None else {name: int((split.part == code).sum()) for code, name in enumerate(splits.PARTS)}
    return Report(
        domains=_domains(events, split, users, items),
        overlaps=_overlaps(events, users, items),
        users=int((users.getnnz(axis=0) > 0).sum()),
        items=int((items.getnnz(axis=0) > 0).sum()),
        events=len(events),
        label=events.schema.label,
        time_unit=events.schema.time_unit if events.time is not None else None,
        split=None if split is None else split.rule,
        parts=parts,
        findings=findings,
        dropped=dict(events.dropped),
    )


def _presence(events: Events, side: str, rows: np.ndarray | None = None) -> csr_matrix:
    """(D, entities) numbers of events, of all rows or of a mask of them."""
    chosen = slice(None) if rows is None else rows
    index, size = (events.user, len(events.user_ids)) if side == "user" else (events.item, len(events.item_ids))
    index, domain = index[chosen], events.domain[chosen]
    return csr_matrix((np.ones(len(index), np.int64), (domain, index)), shape=(len(events.schema.domains), size))


def _overlaps(events: Events, users: csr_matrix, items: csr_matrix) -> list[Overlap]:
    common = []
    for counts in (users, items):
        present = counts.astype(bool).astype(np.int64)
        common.append((present @ present.T).toarray())
    of_users, of_items = common
    names = events.schema.domain_names
    return [
        Overlap(
            (names[a], names[b]),
            int(of_users[a, b]),
            (_share(of_users[a, b], of_users[a, a]), _share(of_users[a, b], of_users[b, b])),
            int(of_items[a, b]),
            (_share(of_items[a, b], of_items[a, a]), _share(of_items[a, b], of_items[b, b])),
        )
        for a in range(len(names))
        for b in range(a + 1, len(names))
    ]


def _share(part: int, whole: int) -> float:
    return float(part) / max(1, int(whole))


def _domains(events: Events, split: Split | None, users: csr_matrix, items: csr_matrix) -> list[DomainReport]:
    n = len(events.schema.domains)
    size, means, spans = np.bincount(events.domain, minlength=n), _label_means(events), _spans(events)
    twice, exactly = _duplicates(events, ["user", "item", "domain"]), _duplicates(events, ["user", "item", "domain", "time"])
    cold = [{} for _ in range(n)] if split is None else _cold(events, split)
    present_users, present_items = users.getnnz(axis=1), items.getnnz(axis=1)
    return [
        DomainReport(
            name=name,
            users=int(present_users[d]),
            items=int(present_items[d]),
            events=int(size[d]),
            density=float(size[d]) / max(1, int(present_users[d]) * int(present_items[d])),
            label_mean=None if means is None else float(means[d]),
            first=spans[d][0],
            last=spans[d][1],
            duplicates=int(twice[d]),
            exact_duplicates=int(exactly[d]),
            **cold[d],
        )
        for d, name in enumerate(events.schema.domain_names)
    ]


def _spans(events: Events) -> list[tuple[int | None, int | None]]:
    n = len(events.schema.domains)
    if events.time is None:
        return [(None, None)] * n
    low, high = np.full(n, np.iinfo(np.int64).max), np.full(n, np.iinfo(np.int64).min)
    np.minimum.at(low, events.domain, events.time)
    np.maximum.at(high, events.domain, events.time)
    return [(int(a), int(b)) if a <= b else (None, None) for a, b in zip(low, high, strict=True)]


def _frame(events: Events) -> pl.DataFrame:
    columns = {"user": events.user, "item": events.item, "domain": events.domain}
    return pl.DataFrame(columns if events.time is None else {**columns, "time": events.time})


def _duplicates(events: Events, by: list[str]) -> np.ndarray:
    """(D,) rows beyond the first of each group."""
    frame = _frame(events)
    kept = frame.select(name for name in by if name in frame.columns).unique()
    n = len(events.schema.domains)
    return np.bincount(events.domain, minlength=n) - np.bincount(kept["domain"].to_numpy(), minlength=n)


def _cold(events: Events, split: Split) -> list[dict[str, Any]]:
    """Per domain, the parts of its report that depend on the split."""
    train, test = split.part == TRAIN, split.part == TEST
    in_train, in_test = _presence(events, "user", train), _presence(events, "user", test)
    known_user, known_item = np.zeros(len(events.user_ids), bool), np.zeros(len(events.item_ids), bool)
    known_user[events.user[train]], known_item[events.item[train]] = True, True
    out = []
    for d in range(len(events.schema.domains)):
        counts = in_train[d].toarray().ravel()[in_test[d].indices] if in_test[d].nnz else np.zeros(0, np.int64)
        rows = test & (events.domain == d)
        few = (counts >= 1) & (counts <= FEW)
        out.append(
            {
                "test_users": {"new": int((counts == 0).sum()), "few": int(few.sum()), "many": int((counts > FEW).sum())},
                "cold_users": float((~known_user[events.user[rows]]).mean()) if rows.any() else None,
                "cold_items": float((~known_item[events.item[rows]]).mean()) if rows.any() else None,
            }
        )
    return out


def _odd_domains(events: Events) -> list[Finding]:
    """Domains with one label only, or without a common period."""
    findings = []
    means = _label_means(events)
    if events.schema.label == "click" and means is not None:
        for name, value in zip(events.schema.domain_names, means, strict=True):
            if value in (0.0, 1.0):
                findings.append(
                    Finding("one label only", f"every label of domain {name!r} is {value:g}", "log impressions too, or load it as implicit")
                )
    spans = [span for span in _spans(events) if span[0] is not None]
    if spans and max(first for first, _ in spans if first is not None) > min(last for _, last in spans if last is not None):
        findings.append(
            Finding(
                "domains at different times",
                "one domain begins after another has ended",
                "a split by time may leave a domain without training or test events: use leave_last, or a common period",
            )
        )
    return findings


def _label_means(events: Events) -> np.ndarray | None:
    if events.label is None:
        return None
    n = len(events.schema.domains)
    size = np.bincount(events.domain, minlength=n)
    return np.bincount(events.domain, weights=events.label, minlength=n) / np.maximum(size, 1)


def _table(title: str, *columns: str) -> Table:
    """An empty table; the title waits in the caption, to be printed unwrapped above it."""
    table = Table(caption=title)
    for i, column in enumerate(columns):
        table.add_column(column, justify="left" if i == 0 else "right")
    return table


def _sizes_table(report: Report) -> Table:
    label = {"click": ["click rate"], "rating": ["mean rating"]}.get(report.label, [])
    span, exact = (["from", "to"], ["and same time"]) if report.time_unit else ([], [])
    table = _table("Sizes", "domain", "users", "items", "events", "density", *label, *span, "same user and item", *exact)
    for d in report.domains:
        counts = (f"{number:,}" for number in (d.users, d.items, d.events))
        means = [] if d.label_mean is None else [f"{d.label_mean:.3f}"]
        moments = [_moment(moment, report.time_unit) for moment in (d.first, d.last)] if report.time_unit else []
        same = [f"{d.duplicates:,}", *([f"{d.exact_duplicates:,}"] if report.time_unit else [])]
        table.add_row(d.name, *counts, f"{d.density:.3%}", *means, *moments, *same)
    return table


def _overlap_table(report: Report) -> Table:
    more = len(report.overlaps) > SHOWN
    title = "Overlap of every two domains" + (f" (the {SHOWN} largest of {len(report.overlaps):,})" if more else "")
    table = _table(title, "domains", "users", "of the first", "of the second", "items", "of the first", "of the second")
    for o in sorted(report.overlaps, key=lambda o: -o.users - o.items)[:SHOWN]:
        users, items = ((f"{n:,}", f"{a:.1%}", f"{b:.1%}") for n, (a, b) in ((o.users, o.user_shares), (o.items, o.item_shares)))
        table.add_row(" and ".join(o.domains), *users, *items)
    return table


def _cold_table(report: Report) -> Table:
    title = f"Test part (rule {report.split}): users by their training events in the domain, and events of users or items never trained on"
    table = _table(title, "domain", "new (0)", f"few (1-{FEW})", "many", "events of unknown users", "events of unknown items")
    for d in report.domains:
        if d.cold_users is not None and d.cold_items is not None:
            table.add_row(d.name, *(f"{n:,}" for n in d.test_users.values()), f"{d.cold_users:.1%}", f"{d.cold_items:.1%}")
    return table


def _moment(moment: int | None, unit: str | None) -> str:
    """A date where the number can be one."""
    if moment is None:
        return "-"
    seconds = moment / PER_SECOND[unit] if unit in PER_SECOND else -1.0
    if not 86_400 * 365 < seconds < 86_400 * 365 * 200:
        return f"{moment:,}"
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d")
