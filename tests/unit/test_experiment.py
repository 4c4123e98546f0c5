"""Compare: parts are kept and not run twice, choices are made on validation, wrong recipes are refused early."""

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from isthmus import storage
from isthmus.data import split as splits
from isthmus.data.events import ContextColumn
from isthmus.data.synthetic import World, make_world
from isthmus.errors import ConfigError, SourceError
from isthmus.experiment import Comparison, ModelSpec, Recipe, compare, default_models, make_split, recall
from isthmus.parts import fingerprint
from isthmus.report import print_report, write_page
from isthmus.task import get_task

QUICK = {"epochs": 2, "batch_size": 256, "lr": 0.01, "threads": 1, "progress": False}


@pytest.fixture(scope="module")
def world() -> World:
    return make_world(("big", "tiny"), users=(200, 120), items=80, events=(4000, 900), relatedness=0.95, user_overlap=0.5, seed=3)


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    models = (
        ModelSpec("popularity", control=None),
        ModelSpec("popularity", "popularity across", {"across": True}, control="popularity"),
        ModelSpec("dnn", args={"dim": 4, "hidden": [8]}, grid={"dropout": [0.0, 0.3]}),
    )
    return Recipe("x", "frame", models, seeds=(0, 1), fit=QUICK, resamples=200)


@pytest.fixture(scope="module")
def comparison(world: World, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    return compare(recipe, tmp_path_factory.mktemp("compare"), events=world.events, say=lambda _: None)


def test_every_line_is_measured_in_every_domain(comparison: Comparison) -> None:
    found = comparison.measures.filter((pl.col("part") == "test") & (pl.col("metric") == "auc") & (pl.col("state") == "all"))
    lines = set(zip(found["model"], found["domain"], found["seed"], strict=True))
    networks = {(m, d, s) for m in ("dnn", "dnn (single-domain)") for d in ("big", "tiny", "all") for s in (0, 1)}
    shallow = {(m, d, 0) for m in ("popularity", "popularity across") for d in ("big", "tiny", "all")}
    assert lines == networks | shallow
    against = comparison.ledger.frame.filter(pl.col("domain") == "tiny").select("model", "against", "reference").rows()
    assert ("dnn", "control", "dnn (single-domain)") in against
    assert ("popularity across", "control", "popularity") in against
    assert not [a for a in against if a[0].startswith("popularity") and a[1] == "shallow"]


def test_the_grid_is_chosen_on_validation_and_kept(comparison: Comparison) -> None:
    part = storage.read_json(comparison.folder / "parts" / "dnn" / "joint" / "0" / "part.json")
    (choice,) = part["choices"]
    runs = [storage.read_json(f)["best"]["value"] for f in sorted(comparison.folder.glob("parts/dnn/joint/0/run-*/result.json"))]
    assert len(runs) == 2
    assert choice["valid"] == pytest.approx(max(runs))


def test_a_single_domain_control_never_saw_another_domain(comparison: Comparison) -> None:
    folder = comparison.folder / "parts" / "dnn" / "single-domain" / "1"
    assert [c["domains"] for c in storage.read_json(folder / "part.json")["choices"]] == [[0], [1]]


def test_finished_parts_are_not_run_again_and_changed_ones_are(comparison: Comparison, recipe: Recipe, world: World) -> None:
    said: list[str] = []
    again = compare(recipe, comparison.folder, events=world.events, say=said.append)
    assert sum("done before" in line for line in said) == 6
    assert again.ledger.frame.equals(comparison.ledger.frame)
    slower = dataclasses.replace(recipe, models=(*recipe.models[:2], dataclasses.replace(recipe.models[2], fit={"lr": 0.02})))
    said.clear()
    compare(slower, comparison.folder, events=world.events, say=said.append)
    assert sum("done before" in line for line in said) == 2
    compare(recipe, comparison.folder, events=world.events, say=said.append)  # back again for the other tests


def test_the_report_draws_from_the_folder_alone(comparison: Comparison) -> None:
    kept = recall(comparison.folder)
    page = write_page(kept, comparison.folder / "report.html").read_text()
    for text in ("dnn (single-domain)", "popularity across", "big", "tiny", "<svg", "The transfer ledger"):
        assert text in page
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_report(kept, console)
    console.file.close()
    text = console.export_text()
    assert "best in tiny" in text
    assert "global_time" in text


def test_a_folder_without_a_comparison(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"comparison\.json is missing"):
        recall(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": (ModelSpec("ease"),)}, "a recipe for 'ctr'"),
        ({"models": (ModelSpec("dnn", args={"hiden": [8]}),)}, "did you mean 'hidden'"),
        ({"models": (ModelSpec("dnm"),)}, "did you mean 'dnn'"),
        ({"fit": {"epoch": 3}}, "did you mean 'epochs'"),
        ({"fit": {"seed": 3}}, "seeds = "),
        ({"task": "rating"}, "'click' labels"),
        ({"split": "given"}, "brings none"),
        ({"split": "leave_first"}, "did you mean 'leave_last'"),
        ({"split": "global_time", "split_args": {"tset": 0.1}}, "tset"),
    ],
)
def test_wrong_recipes_are_refused_before_anything_is_trained(
    world: World, recipe: Recipe, tmp_path: Path, change: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        compare(dataclasses.replace(recipe, **change), tmp_path, events=world.events, say=lambda _: None)  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_the_default_line_up_has_every_model_of_a_task() -> None:
    names = {s.name for s in default_models(get_task("retrieval"))}
    assert names >= {"popularity", "item_knn", "ease", "mf", "dnn", "shared_bottom", "cross_stitch", "mmoe", "ple", "star"}
    across = {s.label: s.control for s in default_models(get_task("retrieval")) if s.args.get("across")}
    assert across["ease across"] == "ease"


def test_a_given_split_is_used(world: World, recipe: Recipe) -> None:
    mine = splits.leave_last(world.events)
    assert make_split(world.events, recipe, mine) is mine
    assert make_split(world.events, recipe).rule == "global_time"


def test_the_data_s_key_sees_context_and_what_a_domain_shows(world: World) -> None:
    events = world.events
    plain = np.zeros(len(events), np.float32)
    frames = [dataclasses.replace(events, context={"x": ContextColumn(values)}) for values in (plain, plain + 1)]
    shown = [dataclasses.replace(events, shows=[np.arange(n, dtype=np.int32)] * 2) for n in (3, 4)]
    assert len({fingerprint(e) for e in (events, *frames, *shown)}) == 5
