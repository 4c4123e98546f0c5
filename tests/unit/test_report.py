"""The report's learning curves: means over seeds of what the logs hold, of the runs that were chosen."""

import dataclasses
import json
from pathlib import Path

import polars as pl
import pytest

from isthmus import storage
from isthmus.data.synthetic import make_world
from isthmus.errors import SourceError
from isthmus.experiment import Comparison, ModelSpec, Recipe, compare, recall
from isthmus.measure import ALL
from isthmus.report import write_page
from isthmus.report.curves import curves, figures
from isthmus.report.figures import beside_paper

QUICK = {"epochs": 3, "patience": 3, "batch_size": 256, "lr": 0.02, "threads": 1, "progress": False}
METRICS = ("auc", "logloss")
SMALL = {"dim": 4, "hidden": [8]}


@pytest.fixture(scope="module")
def comparison(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    world = make_world(("north", "so$uth$"), users=(150, 80), items=60, events=(2500, 600), relatedness=0.9, seed=5)
    models = (
        ModelSpec("popularity", control=None),
        ModelSpec("dnn", args={"dim": 4}, grid={"hidden": [[8], [4]], "dropout": [0.5, 0.0]}),  # not in alphabetical order
        ModelSpec("dnn", "dnn per target", SMALL, per_target=True, control="dnn (single-domain)"),
    )
    recipe = Recipe("x", "frame", models, seeds=(0, 1), fit=QUICK, metrics=METRICS, resamples=200)
    return compare(recipe, tmp_path_factory.mktemp("compare"), events=world.events, say=lambda _: None)


def log(folder: Path) -> list[dict[str, dict[str, dict[str, float]]]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def chosen(part: Path, number: int = 0) -> Path:
    """The run whose best validation value is the part's."""
    choice = storage.read_json(part / "part.json")["choices"][number]
    runs = [r.parent for r in part.glob("run*/result.json") if storage.read_json(r)["best"]["value"] == choice["valid"]]
    assert len(runs) == 1
    return runs[0]


def test_points_are_means_over_seeds_of_the_chosen_runs(comparison: Comparison) -> None:
    frame = curves(comparison)
    assert set(frame["model"]) == {"dnn", "dnn (single-domain)", "dnn per target"}
    logs = [log(chosen(comparison.folder / "parts" / "dnn" / "joint" / seed)) for seed in "01"]
    for kind, name, domain, values in (
        ("metric", "auc", "north", [[e["metrics"]["auc"]["north"] for e in one] for one in logs]),
        ("metric", "logloss", "so$uth$", [[e["metrics"]["logloss"]["so$uth$"] for e in one] for one in logs]),
        ("loss", "loss", ALL, [[e["losses"]["loss"] for e in one] for one in logs]),
    ):
        mine = frame.filter(model="dnn", kind=kind, name=name, domain=domain).sort("epoch")
        assert mine["epoch"].to_list() == [1, 2, 3]
        expected = [sum(pair) / 2 for pair in zip(*values, strict=True)]  # type: ignore[arg-type]
        assert mine["value"].to_list() == pytest.approx(expected)
    assert frame.filter(kind="metric", domain=ALL).is_empty()


def test_trainings_of_their_own_belong_to_their_domain(comparison: Comparison) -> None:
    frame = curves(comparison)
    for model, alone in (("dnn (single-domain)", True), ("dnn per target", False)):
        mine = frame.filter(model=model)
        assert set(mine["alone"]) == {alone}
        assert set(mine.filter(kind="loss")["domain"]) == set(mine.filter(kind="metric")["domain"]) == {"north", "so$uth$"}
    part = comparison.parts["dnn per target", "per-target"]
    runs = [log(folder / storage.read_json(folder / "part.json")["choices"][1]["run"]) for folder in part.values()]
    expected = [sum(e["metrics"]["auc"]["so$uth$"] for e in pair) / 2 for pair in zip(*runs, strict=True)]
    mine = frame.filter(model="dnn per target", kind="metric", name="auc", domain="so$uth$").sort("epoch")
    assert mine["value"].to_list() == pytest.approx(expected)


def test_a_curve_ends_where_the_first_seed_stopped(comparison: Comparison, tmp_path: Path) -> None:
    """A mean over the seeds that are left would jump when one drops out."""
    copy = tmp_path / "copy"
    for file in comparison.folder.rglob("*"):
        if file.suffix in (".json", ".jsonl", ".parquet") and "data" not in file.relative_to(comparison.folder).parts:
            target = copy / file.relative_to(comparison.folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    stopped = chosen(copy / "parts" / "dnn" / "joint" / "1") / "log.jsonl"
    stopped.write_text("".join(stopped.read_text().splitlines(keepends=True)[:2]))
    mine = curves(recall(copy)).filter(model="dnn", name="auc", domain="north")
    assert mine["epoch"].to_list() == [1, 2]
    stopped.write_text("{")
    with pytest.raises(SourceError, match=r"log\.jsonl cannot be read"):
        curves(recall(copy))


def test_one_figure_per_printed_metric_and_one_for_the_losses(comparison: Comparison) -> None:
    drawn = figures(comparison)
    assert list(drawn) == ["auc on validation", "logloss on validation", "losses in training"]
    for text in (">north<", ">so$uth$<", ">dnn<", ">dnn per target<", ">dnn (single-domain)<"):
        assert text in drawn["auc on validation"]
    assert ">dnn (single-domain)<" not in drawn["losses in training"]
    assert ">total<" not in drawn["losses in training"]  # it is the loss again
    other = dataclasses.replace(comparison, recipe=dataclasses.replace(comparison.recipe, metrics=("calibration_error",)))
    assert next(iter(figures(other))) == "calibration_error on validation"


def test_the_page_shows_them_and_stays_light(comparison: Comparison) -> None:
    page = write_page(comparison, comparison.folder / "report.html")
    text = page.read_text()
    assert "How the networks learnt" in text
    assert "Inside the models" not in text
    assert "Beside the paper" not in text
    assert page.stat().st_size < 500_000


def test_the_papers_figure_has_every_model_and_domain() -> None:
    rows = [("a_b", "s1", 0.2, 0.3), ("_c", "s1", 0.4, None), ("a_b", ALL, 0.2, 0.3)]
    frame = pl.DataFrame(rows, schema=["model", "domain", "paper", "ours"], orient="row")
    frame = frame.with_columns(metric=pl.lit("recall@10"), low=pl.col("ours") - 0.05, high=pl.col("ours") + 0.05)
    drawn = beside_paper(frame)
    assert list(drawn) == ["s1", ALL]
    assert ">a_b<" in drawn["s1"]
    assert "recall@10 on average" in drawn[ALL]
