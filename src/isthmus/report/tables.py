"""The tables that both the terminal and the page show, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from isthmus.comparison import Comparison, Whole
from isthmus.measure import ALL
from isthmus.verdicts import places

VERDICTS = ("helps", "hurts", "no evidence")


@dataclass(frozen=True)
class Cell:
    """One model in one domain: mean over seeds, interval, and the ledger's verdicts."""

    value: float | None
    low: float | None
    high: float | None
    against_control: str
    against_shallow: str
    best: bool = False


@dataclass(frozen=True)
class Grid:
    """Models x domains (of a recipe with cells: x cells) for one metric.  Rows keep the recipe's order."""

    metric: str
    domains: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


@dataclass(frozen=True)
class Comparisons:
    """One kind of comparison in one metric: differences and verdicts, (model, reference) x domains or cells.

    Attributes:
        metric: above 0 the model is better, whatever its direction.
        against: "control", "shallow" or "line".
        domains: names of the columns.
        rows: model, reference, and (difference, verdict) by column, None where there was nothing to compare.
    """

    metric: str
    against: str
    domains: tuple[str, ...]
    rows: tuple[tuple[str, str, tuple[tuple[float, str] | None, ...]], ...]


def grid(comparison: Comparison | Whole, metric: str, *, state: str = "all", part: str = "test") -> Grid:
    """The table of one metric: every line of the comparison, single-domain controls included; domains with rows to test.

    ``best`` marks the model with the best mean on VALIDATION in its domain: what one would deploy.
    """
    kept = (pl.col("metric") == metric) & (pl.col("state") == state) & (pl.col("part") == part) & (pl.col("domain") != ALL)
    frame = comparison.measures.filter(kept)
    frame = frame.with_columns(place=places(frame))
    means = frame.group_by("model", "place", maintain_order=True).agg(pl.col("value", "low", "high").mean())
    found = {(r["model"], r["place"]): r for r in means.iter_rows(named=True)}
    book = comparison.ledger
    best = book.best() if metric == book.metric else {}
    verdicts = _verdicts(book.frame.filter((pl.col("domain") != ALL) & (pl.col("metric") == metric)))

    def cell(model: str, place: str) -> Cell:
        r = found.get((model, place))
        if r is None:
            return Cell(None, None, None, "", "")
        marks = (verdicts.get((model, place, against), "") for against in ("control", "shallow"))
        return Cell(r["value"], r["low"], r["high"], *marks, best=best.get(place) == model)

    there = tuple(dict.fromkeys(frame["place"]))
    if isinstance(comparison, Comparison):
        there = tuple(d for d in comparison.schema.domain_names if d in there)
    return Grid(metric, there, tuple((m, tuple(cell(m, p) for p in there)) for m in dict.fromkeys(frame["model"])))


def _verdicts(frame: pl.DataFrame) -> dict[tuple[str, str, str], str]:
    rows = frame.with_columns(place=places(frame)).select("model", "place", "against", "verdict")
    return {(model, place, against): verdict for model, place, against, verdict in rows.iter_rows() if against != "line"}


def compared(comparison: Comparison | Whole) -> list[Comparisons]:
    """The ledger as tables, one for each ``against`` and metric; the best shallow line is one reference, whichever it is."""
    frame = comparison.ledger.frame.filter(pl.col("domain") != ALL)
    frame = frame.with_columns(place=places(frame))
    columns = tuple(dict.fromkeys(frame["place"]))
    tables: list[Comparisons] = []
    for against in ("control", "shallow", "line"):
        for metric in comparison.ledger.metrics:
            rows: dict[tuple[str, str], dict[str, tuple[float, str]]] = {}
            for r in frame.filter((pl.col("against") == against) & (pl.col("metric") == metric)).iter_rows(named=True):
                reference = "the best shallow line" if against == "shallow" else r["reference"]
                rows.setdefault((r["model"], reference), {})[r["place"]] = (r["difference"], r["verdict"])
            if rows:
                kept = tuple((*key, tuple(by_place.get(p) for p in columns)) for key, by_place in rows.items())
                tables.append(Comparisons(metric, against, columns, kept))
    return tables


def facts(comparison: Comparison | Whole) -> list[tuple[str, str]]:
    """What the numbers stand on, as label and text."""
    if isinstance(comparison, Whole):
        return _whole_facts(comparison)
    f = comparison.facts
    lines = [
        ("task", comparison.task.name),
        ("source", str(f["source"])),
        ("split", f"{f['split']} ({f['split_hash']})"),
        ("seeds", ", ".join(map(str, f["seeds"]))),
    ]
    if f.get("refit"):
        lines.append(("final fit", "on train + validation, after choosing on validation"))
    lists = {r["domain"]: r["lists"] for r in comparison.measures.filter(pl.col("part") == "test").iter_rows(named=True) if r.get("lists")}
    if lists:
        lines.append(("candidates", "; ".join(f"{d}: {name}" for d, name in lists.items() if d != "all")))
    elif comparison.task.ranked:
        lines.append(("candidates", "the domain's whole catalogue"))
    return lines


def _whole_facts(whole: Whole) -> list[tuple[str, str]]:
    """What all cells have in common, and how many they are."""
    by_label: dict[str, dict[str, None]] = {}
    for own in whole.cells.values():
        for label, text in facts(own):
            by_label.setdefault(label, {})[str(own.facts["split"]) if label == "split" else text] = None
    return [("cells", str(len(whole.cells))), *((label, "; ".join(texts)) for label, texts in by_label.items())]
