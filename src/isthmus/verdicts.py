"""``Ledger``: comparisons with their verdicts, of one data set or of several cells; p-values are corrected family by family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from isthmus import metrics as metric_files
from isthmus.estimates import ALL
from isthmus.metrics._inference import holm

COLUMNS = {
    "model": pl.String,
    "domain": pl.String,
    "metric": pl.String,
    "against": pl.String,
    "reference": pl.String,
    "value": pl.Float64,
    "reference_value": pl.Float64,
    "difference": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "p": pl.Float64,
    "p_holm": pl.Float64,
    "verdict": pl.String,
    "seeds": pl.Int64,
    "users": pl.Int64,
    "note": pl.String,
}
DECIDED = ("p_holm", "verdict")
NUMBERS = {name: kind for name, kind in COLUMNS.items() if name not in DECIDED}
VALIDATION: dict[str, Any] = {"model": pl.String, "domain": pl.String, "metric": pl.String, "value": pl.Float64}
LEFT_OUT: dict[str, Any] = dict.fromkeys(("model", "domain", "metric", "against", "reference", "reason"), pl.String)
RESAMPLES = 100  # of users, for an interval; fewer say nothing
CELL = "cell"
ONE_SEED = "one seed: no verdict, since the luck of a training is not known"


@dataclass(frozen=True)
class Ledger:
    """The comparisons and their verdicts.

    Attributes:
        frame: one row per model, domain, metric and ``against`` ("control", "shallow", or "line": one that the model names):
            reference (the entry compared with), value and reference_value (means over seeds), difference (above 0: the model
            is better, whatever the metric's direction), low and high (its interval, for this comparison alone), p
            (two-sided), p_holm (corrected for all comparisons of the family), verdict ("helps", "hurts" or "no evidence", by
            p_holm), seeds, users, note.  The domain "all" is the mean over domains.  Of a recipe with cells, here and below,
            a column cell is in front.
        left_out: comparisons that the data do not allow, with the reason.
        validation: model, domain, metric and value on validation (mean over seeds), null where not defined.
        metrics: what is compared.
        level: of confidence; 1 - level is the nominal chance of a wrong verdict anywhere in a family (see ``ledger``).
    """

    frame: pl.DataFrame
    left_out: pl.DataFrame
    validation: pl.DataFrame
    metrics: tuple[str, ...]
    level: float

    @property
    def metric(self) -> str:
        """The first metric, which decides."""
        return self.metrics[0]

    def best(self) -> dict[str, str]:
        """The best model of each domain by the first metric, chosen on validation; domains without a validation value are not
        in it.  Of several cells: of each "<cell>", or "<cell>: <domain>" where it has several domains."""
        up = metric_files.get(self.metric).higher_is_better
        named = self.validation.with_columns(place=places(self.validation))
        named = named.filter(pl.col("value").is_not_null() & (pl.col("domain") != ALL) & (pl.col("metric") == self.metric))
        top = named.sort("value", descending=up, maintain_order=True).unique("place", keep="first", maintain_order=True)
        chosen = dict(zip(top["place"], top["model"], strict=True))
        return {place: chosen[place] for place in named["place"].unique(maintain_order=True)}

    def summary(self) -> list[str]:
        """One sentence per comparison, verdicts first."""
        rows = sorted(self.frame.iter_rows(named=True), key=lambda r: r["verdict"] == "no evidence")
        return [self._sentence(r) for r in rows] + [
            f"{r['model']} could not be compared {_where(r)} against {r['reference'] or r['against']}: {r['reason']}"
            for r in self.left_out.iter_rows(named=True)
        ]

    def _sentence(self, r: Mapping[str, Any]) -> str:
        says = "shows no evidence" if r["verdict"] == "no evidence" else r["verdict"]
        numbers = f"{r['difference']:+.4f} [{r['low']:.4f}, {r['high']:.4f}] {r['metric']}"
        role = {"control": "its control ", "shallow": "the best shallow model, "}.get(r["against"], "")
        note = f" ({r['note']})" if r["note"] else ""
        return f"{r['model']} {says} {_where(r)} ({numbers} against {role}{r['reference']}){note}"


def _where(r: Mapping[str, Any]) -> str:
    where = "on the mean over domains" if r["domain"] == ALL else f"in {r['domain']!r}"
    return f"{where} of cell {r[CELL]!r}" if CELL in r else where


def places(frame: pl.DataFrame) -> pl.Series:
    """What each row's domain is called beside others: its name; of several cells the cell's, with the domain where it has several."""
    if CELL not in frame.columns:
        return frame["domain"]
    several = pl.col("domain").filter(pl.col("domain") != ALL).n_unique().over(CELL) > 1
    name = pl.when(several).then(pl.format("{}: {}", CELL, "domain")).otherwise(pl.col(CELL))
    return frame.select(place=name)["place"]


def decided(frame: pl.DataFrame, alpha: float) -> pl.DataFrame:
    """Corrects each family (one ``against``, domains or means over them; whatever metric and cell) and says what follows."""
    families = [(against, domain == ALL) for against, domain in frame.select("against", "domain").iter_rows()]
    p, corrected = frame["p"].to_numpy(), np.ones(frame.height)
    for family in set(families):
        members = [i for i, own in enumerate(families) if own == family]
        corrected[members] = holm(p[members])
    sure = (pl.col("p_holm") < alpha) & ~pl.col("note").fill_null("").str.contains(ONE_SEED, literal=True)
    verdict = (
        pl.when(sure & (pl.col("difference") > 0)).then(pl.lit("helps")).when(sure).then(pl.lit("hurts")).otherwise(pl.lit("no evidence"))
    )
    columns = [*([CELL] if CELL in frame.columns else []), *COLUMNS]
    return frame.with_columns(p_holm=pl.Series(corrected, dtype=pl.Float64)).with_columns(verdict=verdict).select(columns)


def together(ledgers: Mapping[str, Ledger]) -> Ledger:
    """One ledger over several cells: the same comparisons, each family corrected over all of them.

    Args:
        ledgers: by cell; of the same metrics and level.
    """
    first = next(iter(ledgers.values()))
    frame = in_cells({cell: own.frame.drop(DECIDED) for cell, own in ledgers.items()})
    left_out, validation = (in_cells({cell: getattr(own, name) for cell, own in ledgers.items()}) for name in ("left_out", "validation"))
    return Ledger(decided(frame, 1 - first.level), left_out, validation, first.metrics, first.level)


def in_cells(frames: Mapping[str, pl.DataFrame]) -> pl.DataFrame:
    """Frames of several cells as one, a column ``cell`` in front."""
    return pl.concat([frame.select(pl.lit(cell).alias(CELL), pl.all()) for cell, frame in frames.items()])
