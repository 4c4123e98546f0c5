"""Recipes with cells: each cell an ordinary comparison, one ledger over all of them, drawn again from what was kept."""

import dataclasses
import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import polars as pl
import pytest
from rich.console import Console

from isthmus import storage
from isthmus.cell import Cell
from isthmus.comparison import cell_folder
from isthmus.config import read_recipe
from isthmus.data.synthetic import make_world
from isthmus.errors import ConfigError
from isthmus.experiment import Comparison, ModelSpec, Paper, Recipe, Whole, compare, recall
from isthmus.parts import part_folder
from isthmus.report import print_report, write_page
from isthmus.scores import Scores

RECIPE = """
name = "cold"
title = "Cold users"
task = "rating"
seeds = [0, 1]
metrics = ["mae", "rmse"]
ledger_metrics = ["mae", "rmse"]
resamples = 200

[data]
source = "table"
path = "events.parquet"
label = "label"
time = "time"

[split]
rule = "cold_users"
share = 0.4

[fit]
epochs = 2
batch_size = 256
threads = 1
progress = false

[[models]]
name = "popularity"
label = "item mean"
control = "none"

[[models]]
name = "mf"
dim = 4
across = true
control = "item mean"

[[models]]
name = "dnn"
label = "DNN"
dim = 4
hidden = [8]
against = ["item mean", "mf"]

[paper]
title = "Somebody & others, Table 3"
metric = "mae"

[[cells]]
name = "a to b"
split.target = "b"
paper.mae = { DNN = 0.1, mf = 5.0 }
paper.rmse.DNN = 0.1

[[cells]]
name = "b to a, 60 %"
split.target = "a"
split.share = 0.6
paper.mae.DNN = 0.2
"""


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("recipe")
    world = make_world(("a", "b"), users=150, items=50, events=2500, label="rating", user_overlap=0.7, seed=4)
    world.events.frame().write_parquet(folder / "events.parquet")
    (folder / "cold.toml").write_text(RECIPE)
    return folder / "cold.toml"


@pytest.fixture(scope="module")
def recipe(path: Path) -> Recipe:
    return read_recipe(path)


@pytest.fixture(scope="module")
def said() -> list[str]:
    return []


@pytest.fixture(scope="module")
def whole(recipe: Recipe, said: list[str], tmp_path_factory: pytest.TempPathFactory) -> Whole:
    found = compare(recipe, tmp_path_factory.mktemp("whole"), say=said.append)
    assert isinstance(found, Whole)
    return found


def silent(_: str) -> None: ...


def printed(found: Comparison | Whole, width: int) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_report(found, console)
    console.file.close()
    return console.export_text()


def corrected(p: list[float]) -> list[float]:
    """Holm, step by step as in the textbook: smallest first, times the number left, never below the one before."""
    out, before = [0.0] * len(p), 0.0
    for step, at in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        before = out[at] = max(before, min(1.0, p[at] * (len(p) - step)))
    return out


def test_a_cell_is_an_ordinary_comparison(whole: Whole, recipe: Recipe, tmp_path: Path) -> None:
    """The same scores and measures as a recipe of its own with the cell's split."""
    cell = recipe.cells[1]
    alone = dataclasses.replace(recipe, cells=(), paper=None, split_args={"share": 0.6, "target": "a"})
    found = compare(alone, tmp_path, say=silent)
    assert whole.cells[cell.name].measures.equals(found.measures)
    mine = whole.measures.filter(pl.col("cell") == cell.name).drop("cell")
    assert mine.equals(found.measures)
    kept = recall(whole.folder / "cells" / whole.cells[cell.name].folder.name)
    assert isinstance(kept, Comparison)
    assert kept.ledger.frame.equals(whole.cells[cell.name].ledger.frame)


def test_a_source_is_read_once_for_the_cells_that_read_it_alike(whole: Whole, said: list[str]) -> None:
    assert len(whole.cells) == 2
    assert said.count("reading table") == 1
    assert "[1/12] a to b: item mean, seed 0" in said


def test_one_correction_over_all_lines_cells_and_metrics(whole: Whole) -> None:
    frame = whole.ledger.frame
    assert set(frame.select("cell", "domain").iter_rows()) == {("a to b", "b"), ("b to a, 60 %", "a")}  # no mean over one domain
    rows = set(frame.filter(pl.col("against") == "line").select("cell", "model", "reference", "metric").iter_rows())
    cells, metrics = ("a to b", "b to a, 60 %"), ("mae", "rmse")
    assert rows == {(c, "DNN", reference, m) for c in cells for reference in ("item mean", "mf") for m in metrics}
    sizes = {"line": 2 * 2 * 2, "control": 2 * 2 * 2, "shallow": 2 * 2 * 2}  # DNN and mf; DNN and its control; two cells, two metrics
    for against, size in sizes.items():
        family = frame.filter(pl.col("against") == against)
        assert family.height == size
        assert family["p_holm"].to_list() == pytest.approx(corrected(family["p"].to_list()))
    one = pl.concat([own.ledger.frame.select("p", "difference", "low", "high") for own in whole.cells.values()])
    assert frame.select("p", "difference", "low", "high").equals(one)


def test_a_control_is_trained_where_there_are_rows_to_test(whole: Whole) -> None:
    part = whole.cells["a to b"].parts["DNN", "single-domain"][0]
    assert [c["domains"] for c in storage.read_json(part / "part.json")["choices"]] == [[1]]
    assert set(Scores.load(part / "test.parquet").frame["domain"]) == {"b"}


def test_the_papers_values_of_each_cell_and_metric(whole: Whole) -> None:
    assert whole.paper is not None
    rows = {(r["cell"], r["model"], r["metric"]): r for r in whole.paper.iter_rows(named=True)}
    assert {key: r["paper"] for key, r in rows.items()} == {
        ("a to b", "mf", "mae"): 5.0,
        ("a to b", "DNN", "mae"): 0.1,
        ("a to b", "DNN", "rmse"): 0.1,
        ("b to a, 60 %", "DNN", "mae"): 0.2,
    }
    measured = whole.measures.filter((pl.col("part") == "test") & (pl.col("state") == "all") & (pl.col("domain") != "all"))
    for (cell, model, metric), row in rows.items():
        ours = measured.filter((pl.col("cell") == cell) & (pl.col("model") == model) & (pl.col("metric") == metric))
        assert row["ours"] == pytest.approx(ours["value"].mean())
    assert rows["a to b", "mf", "mae"]["verdict"] == "below"
    known = [(r["p"], r["p_holm"]) for r in rows.values()]
    assert [q for _, q in known] == pytest.approx(corrected([p for p, _ in known]))


def test_it_is_drawn_again_from_what_was_kept(whole: Whole) -> None:
    before = {p: p.stat().st_mtime_ns for p in whole.folder.rglob("part.json")}
    again = recall(whole.folder)
    assert isinstance(again, Whole)
    assert again.ledger.frame.equals(whole.ledger.frame)
    assert again.measures.equals(whole.measures)
    assert list(again.cells) == ["a to b", "b to a, 60 %"]
    assert pl.read_parquet(whole.folder / "ledger.parquet").equals(whole.ledger.frame)
    assert pl.read_parquet(whole.folder / "measures.parquet")["cell"].unique(maintain_order=True).to_list() == list(again.cells)
    page = write_page(again, whole.folder / "report.html").read_text()
    for name, cell in again.cells.items():
        link = (cell.folder / "report.html").relative_to(whole.folder).as_posix()
        assert f'href="{link}"' in page
        assert f"<h2>{name}</h2>" in page
        assert "How the networks learnt" in (cell.folder / "report.html").read_text()
    assert "Somebody &amp; others, Table 3" in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace("http://creativecommons.org", "")
    assert before == {p: p.stat().st_mtime_ns for p in whole.folder.rglob("part.json")}


@pytest.mark.parametrize("width", [160, 80])
def test_the_terminal_shows_lines_by_cells(whole: Whole, width: int) -> None:
    text = printed(whole, width)
    means = whole.measures.filter((pl.col("part") == "test") & (pl.col("state") == "all")).group_by("cell", "model", "metric")
    for value in means.agg(pl.col("value").mean())["value"]:
        assert f"{value:.4f}" in text
    for difference in whole.ledger.frame["difference"]:
        assert f"{difference:+.4f}" in text
    for expected in ("mae against other lines", "DNN : item mean", "(5.0000)", "mf (mae): below the paper in 'a to b'"):
        assert expected in text
    assert "…" not in text
    best = whole.ledger.best()
    assert best == {name: cell.ledger.best()[domain] for (name, cell), domain in zip(whole.cells.items(), "ba", strict=True)}
    for cell, model in best.items():
        assert f"best in {cell}: {model}" in text


def test_one_cell_and_some_lines_train_nothing_twice(whole: Whole, recipe: Recipe) -> None:
    said: list[str] = []
    some = recipe.in_cells(["b to a, 60 %"]).only(["mf"])
    found = compare(some, whole.folder, say=said.append)
    assert isinstance(found, Whole)
    assert list(found.cells) == ["b to a, 60 %"]
    assert sum("done before" in line for line in said) == 2
    said.clear()
    again = compare(recipe, whole.folder, say=said.append)
    assert sum("done before" in line for line in said) == 12
    assert again.ledger.frame.equals(whole.ledger.frame)


def test_processes_share_all_cells(recipe: Recipe, tmp_path: Path) -> None:
    """Every part is run once, and all see the whole ledger."""
    begun, lock = Counter[str](), threading.Lock()

    def say(line: str) -> None:
        with lock:
            begun[line] += 1

    small = dataclasses.replace(recipe.only(["mf"]), seeds=(0,))
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(lambda _: compare(small, tmp_path, say=say), range(2)))
    ran = [line for line in begun if line.startswith("[") and "done before" not in line]
    assert len(ran) == 4
    assert all(begun[line] == 1 for line in ran)
    assert found[0].ledger.frame.equals(found[1].ledger.frame)


def test_nobody_waits_for_one_cell_while_another_has_free_parts(recipe: Recipe, tmp_path: Path) -> None:
    waits, small = threading.Event(), dataclasses.replace(recipe.only(["mf"]), seeds=(0,))
    first, second = (cell_folder(tmp_path, cell.name) for cell in recipe.cells)
    with ThreadPoolExecutor(1) as pool:
        with storage.claim(part_folder(first, "mf", "joint", 0)) as mine:  # as another process would that is at this part
            assert mine
            found = pool.submit(compare, small, tmp_path, say=lambda line: waits.set() if line.startswith("waiting for 1 ") else None)
            assert waits.wait(120)
            assert (part_folder(second, "mf", "joint", 0) / "part.json").exists()
        assert isinstance(found.result(), Whole)


def test_cells_in_memory_and_with_several_domains(tmp_path: Path) -> None:
    """Events in memory serve cells that change the split; a cell with two domains has a column for each."""
    world = make_world(("a", "b"), users=80, items=30, events=1500, seed=4)
    models = (ModelSpec("popularity", control=None), ModelSpec("popularity", "across", {"across": True}, control="popularity"))
    cells = (Cell("early", split_args={"test": 0.3}), Cell("late", split_args={"test": 0.1}))
    recipe = Recipe("x", "frame", models, split="global_time", resamples=200, cells=cells)
    found = compare(recipe, tmp_path, events=world.events, say=silent)
    assert isinstance(found, Whole)
    assert list(found.ledger.best()) == ["early: a", "early: b", "late: a", "late: b"]
    for means in (True, False):
        family = found.ledger.frame.filter((pl.col("domain") == "all") == means)
        assert family.height == (2 if means else 4)
        assert family["p_holm"].to_list() == pytest.approx(corrected(family["p"].to_list()))
    assert "early: b" in printed(found, 120)
    assert any("in 'a' of cell 'early'" in line for line in found.ledger.summary())
    other = dataclasses.replace(recipe, cells=(Cell("early", source_args={"x": 1}),))
    with pytest.raises(ConfigError, match="events in memory"):
        compare(other, tmp_path / "other", events=world.events, say=silent)


def test_every_cell_is_checked_before_anything_is_written(recipe: Recipe, tmp_path: Path) -> None:
    wrong = dataclasses.replace(recipe, cells=(recipe.cells[0], Cell("c", split_args={"target": "bb"})))
    with pytest.raises(ConfigError, match="did you mean 'b'"):
        compare(wrong, tmp_path, say=silent)
    assert not list(tmp_path.iterdir())


def test_what_a_cell_changes() -> None:
    recipe = Recipe(
        "x", "s", (ModelSpec("dnn"),), title="T", source_args={"p": 1, "q": 2}, split="r", split_args={"u": 1}, metrics=("auc", "rmse")
    )
    own = recipe.of(Cell("c", source_args={"q": 3}, split_args={"v": 4}))
    assert (own.source, own.source_args, own.split, own.split_args) == ("s", {"p": 1, "q": 3}, "r", {"u": 1, "v": 4})
    assert (own.title, own.cells, own.paper) == ("T: c", (), None)
    other = recipe.of(Cell("c", source="t", source_args={"q": 3}, split="w"))
    assert (other.source, other.source_args, other.split, other.split_args) == ("t", {"q": 3}, "w", {})
    paper = Paper("t", "auc", {}, "n")
    shown = dataclasses.replace(recipe, paper=paper).of(Cell("c", paper={"auc": {"dnn": 1}, "rmse": {"dnn": 2.0}})).paper
    assert shown == Paper("t", "auc", {"dnn": {"all": 1.0}}, "n", {"rmse": {"dnn": {"all": 2.0}}})


def test_a_recipe_with_cells_survives_json_and_keeps_what_lines_need(recipe: Recipe) -> None:
    assert Recipe.from_dict(json.loads(json.dumps(dataclasses.asdict(recipe)))) == recipe
    less = dataclasses.replace(recipe, models=(*recipe.models[:2], dataclasses.replace(recipe.models[2], against=("mf",), control=None)))
    assert [m.label for m in less.only(["DNN"]).models] == ["item mean", "mf", "DNN"]  # mf, and mf's control
    left = recipe.only(["mf"])
    assert [m.label for m in left.models] == ["item mean", "mf"]
    assert [cell.paper for cell in left.cells] == [{"mae": {"mf": 5.0}, "rmse": {}}, {"mae": {}}]
    with pytest.raises(ConfigError, match="did you mean 'a to b'"):
        recipe.in_cells(["a to bb"])
    with pytest.raises(ConfigError, match="without cells"):
        dataclasses.replace(recipe, cells=()).in_cells(["a to b"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (('name = "b to a, 60 %"', 'name = "a to b"'), "cells called 'a to b' more than once"),
        (('name = "b to a, 60 %"', "share = 1"), "a table with name"),
        (("split.share = 0.6", "splits.share = 0.6"), "did you mean 'split'"),
        (("split.share = 0.6", "data = 3"), "a table"),
        (("split.share = 0.6", "split.rule = 3"), "a text"),
        (("paper.mae.DNN = 0.2", "paper.mae.DMN = 0.2"), "did you mean 'DNN'"),
        (("paper.mae.DNN = 0.2", "paper.mea.DNN = 0.2"), "did you mean 'mae'"),
        (("paper.mae.DNN = 0.2", "paper.auc.DNN = 0.2"), "metric 'auc'"),
        (("paper.mae.DNN = 0.2", 'paper.mae.DNN = "x"'), "'x'"),
        (("paper.mae.DNN = 0.2", "paper.mae = 0.2"), "a table of lines for each metric"),
        (('[paper]\ntitle = "Somebody & others, Table 3"\nmetric = "mae"', ""), "no [paper]"),
        (('metric = "mae"', 'metric = "mae"\n[paper.values.DNN]\na = 0.5'), "in a recipe with cells"),
        (('ledger_metrics = ["mae", "rmse"]', 'ledger_metrics = ["mae", "rsme"]'), "did you mean 'rmse'"),
        (('ledger_metrics = ["mae", "rmse"]', "ledger_metrics = []"), "at least one metric"),
        (('ledger_metrics = ["mae", "rmse"]', "ledger_metrics = [3]"), "a list of texts"),
        (('against = ["item mean", "mf"]', 'against = ["item mena"]'), "did you mean 'item mean'"),
        (('against = ["item mean", "mf"]', 'against = ["DNN"]'), "against 'DNN'"),
        (('against = ["item mean", "mf"]', 'against = ["mf", "mf"]'), "each once"),
        (('against = ["item mean", "mf"]', 'against = "mf"'), "a list of lines"),
    ],
)
def test_refusals(path: Path, tmp_path: Path, change: tuple[str, str], message: str) -> None:
    assert change[0] in RECIPE
    (tmp_path / "r.toml").write_text(RECIPE.replace(*change))
    with pytest.raises(ConfigError, match=message.replace("[", r"\[")):
        read_recipe(tmp_path / "r.toml")
