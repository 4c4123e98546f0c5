"""The tables that both the terminal and the page show, as plain values."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from isthmus.experiment import Comparison


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
    """Models x domains for one metric.  Rows keep the recipe's order."""

    metric: str
    domains: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]


def grid(comparison: Comparison, metric: str, *, state: str = "all", part: str = "test") -> Grid:
    """The table of one metric: every line of the comparison, single-domain controls included.

    ``best`` marks the model with the best mean on VALIDATION in its domain: what one would deploy.
    """
    frame = comparison.measures.filter((pl.col("metric") == metric) & (pl.col("state") == state) & (pl.col("part") == part))
    means = frame.group_by("model", "domain", maintain_order=True).agg(pl.col("value", "low", "high").mean())
    cells = {(r["model"], r["domain"]): r for r in means.iter_rows(named=True)}
    best = comparison.ledger.best() if metric == comparison.ledger.metric else {}
    domains = comparison.schema.domain_names
    models = list(dict.fromkeys(frame["model"]))
    rows = tuple((m, tuple(_cell(comparison, m, d, cells.get((m, d)), best.get(d) == m, metric) for d in domains)) for m in models)
    return Grid(metric, domains, rows)


def _cell(comparison: Comparison, model: str, domain: str, found: dict[str, float] | None, best: bool, metric: str) -> Cell:
    verdicts = {"control": "", "shallow": ""}
    if metric == comparison.ledger.metric:
        mine = comparison.ledger.frame.filter((pl.col("model") == model) & (pl.col("domain") == domain))
        verdicts |= {r["against"]: r["verdict"] for r in mine.iter_rows(named=True)}
    if found is None:
        return Cell(None, None, None, "", "")
    return Cell(found["value"], found["low"], found["high"], verdicts["control"], verdicts["shallow"], best)


def facts(comparison: Comparison) -> list[tuple[str, str]]:
    """What the numbers stand on, as label and text."""
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
