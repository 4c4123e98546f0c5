"""Cells that are draws of one split: which belong together, means and intervals by hand, and a comparison that shows them."""

from __future__ import annotations

import math
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console
from scipy import stats

from isthmus.cell import Cell
from isthmus.data.synthetic import make_world
from isthmus.draws import SHALLOW, groups, over_draws
from isthmus.experiment import ModelSpec, Recipe, Whole, compare, recall
from isthmus.report import print_report, write_page


def test_cells_that_differ_in_the_seed_of_their_split_alone_are_draws() -> None:
    cells = [Cell(f"half, draw {n}", split_args={"share": 0.5, "seed": n}) for n in range(3)]
    cells += [Cell("fifth, draw 0", split_args={"share": 0.2, "seed": 0}), Cell("fifth, draw 1", split_args={"share": 0.2, "seed": 1})]
    cells += [Cell("other data, draw 0", source_args={"label": "click"}, split_args={"share": 0.2, "seed": 0})]
    assert groups(cells) == {
        "half, draw": ["half, draw 0", "half, draw 1", "half, draw 2"],
        "fifth, draw": ["fifth, draw 0", "fifth, draw 1"],
    }
    assert groups([Cell("0", split_args={"seed": 0}), Cell("1", split_args={"seed": 1})]) == {"0": ["0", "1"]}, "nothing in common"
    assert groups(cells[4:]) == {}


def frames(values: dict[str, list[float]], differences: list[float]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Two seeds per cell, .1 below and above the value; a validation row and a user state that must not count."""
    rows = []
    for model, by_cell in values.items():
        for n, value in enumerate(by_cell):
            rows += [(f"d{n}", model, "test", seed, "music", "all", "auc", value + 0.1 * (2 * seed - 1)) for seed in (0, 1)]
            rows += [(f"d{n}", model, "valid", 0, "music", "all", "auc", 9.0), (f"d{n}", model, "test", 0, "music", "new", "auc", 9.0)]
            rows += [(f"d{n}", model, "test", 0, "all", "all", "auc", 9.0)]
    measures = pl.DataFrame(rows, ["cell", "model", "part", "seed", "domain", "state", "metric", "value"], orient="row")
    book = [(f"d{n}", "x", "music", "auc", "shallow", f"best{n}", d) for n, d in enumerate(differences)]
    book += [("d0", "x", "all", "auc", "shallow", "best0", 9.0)]
    return measures, pl.DataFrame(book, ["cell", "model", "domain", "metric", "against", "reference", "difference"], orient="row")


def test_means_deviations_and_widened_intervals_by_hand() -> None:
    measures, book = frames({"x": [0.6, 0.7, 0.8], "y": [0.5, 0.5, 0.5]}, [0.1, 0.2, -0.03])
    named = {"d": ["d0", "d1", "d2"]}
    found = over_draws(named, measures, book, {f"d{n}": {"train": 100, "test": 10 * (n + 1)} for n in range(3)})
    assert found is not None
    assert found.values.rows() == [
        ("d", "music", "auc", "x", pytest.approx(0.7), pytest.approx(0.1), 3),
        ("d", "music", "auc", "y", 0.5, 0.0, 3),
    ]
    row = found.differences.row(0, named=True)
    sd = math.sqrt((0.01**2 + 0.11**2 + 0.12**2) / 2)  # about the mean .09
    half = stats.t.ppf(0.975, 2) * sd * math.sqrt(1 / 3 + 0.2)  # shares .1, .2, .3
    assert (row["reference"], row["ahead"], row["n"]) == (SHALLOW, 2, 3)
    assert (row["difference"], row["low"], row["high"]) == pytest.approx((0.09, 0.09 - half, 0.09 + half))
    unknown = over_draws(named, measures, book, dict.fromkeys(named["d"]))
    assert unknown is not None
    assert unknown.differences["high"][0] == pytest.approx(0.09 + half * math.sqrt((1 / 3) / (1 / 3 + 0.2)))
    assert over_draws({}, measures, book, {}) is None


def test_a_comparison_of_draws_shows_them(tmp_path: Path) -> None:
    events = make_world(2, users=80, items=40, events=1500, label="rating").events
    models = (ModelSpec("popularity", control=None), ModelSpec("bias_transfer", control="popularity"))
    cells = tuple(Cell(f"draw {n}", split_args={"seed": n}) for n in range(3))
    target = events.schema.domain_names[1]
    args = {"target": target, "share": 0.4}
    recipe = Recipe(
        "draws", "frame", models, task="rating", split="cold_users", split_args=args, cells=cells, metrics=("mae",), resamples=100
    )
    whole = compare(recipe, tmp_path, events=events, say=lambda _: None)
    assert isinstance(whole, Whole)
    assert whole.draws is not None
    assert whole.cells["draw 0"].facts["rows"].keys() == {"train", "test"}
    by_cell = whole.measures.filter(part="test", state="all", domain=target, model="bias_transfer")["value"]
    mine = whole.draws.values.filter(model="bias_transfer").row(0, named=True)
    assert (mine["value"], mine["sd"], mine["n"]) == (pytest.approx(by_cell.mean()), pytest.approx(by_cell.std()), 3)
    assert pl.read_parquet(tmp_path / "draws_ledger.parquet").equals(whole.draws.differences)
    again = recall(tmp_path)
    assert isinstance(again, Whole)
    assert again.draws is not None
    assert again.draws.differences.equals(whole.draws.differences)
    console = Console(width=200, record=True)
    print_report(whole, console)
    shown = console.export_text()
    assert "over draws: mean difference" in shown
    assert f"{mine['value']:.4f} ± {mine['sd']:.4f}" in shown
    page = write_page(whole, tmp_path / "report.html").read_text()
    assert "Over draws" in page
    assert f"{mine['value']:.4f} ± {mine['sd']:.4f}" in page
