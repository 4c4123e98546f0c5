"""Compare: parts are kept and not run twice, choices are made on validation, wrong recipes are refused early."""

import dataclasses
import json
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from isthmus import storage
from isthmus.data import split as splits
from isthmus.data.dataset import Dataset
from isthmus.data.events import ContextColumn
from isthmus.data.rules import make_split
from isthmus.data.synthetic import World, make_world
from isthmus.errors import ConfigError, SourceError
from isthmus.experiment import Comparison, ModelSpec, Paper, Recipe, check_writable, compare, default_models, recall
from isthmus.fit import How, build, fit
from isthmus.parts import Part, fingerprint
from isthmus.published import sentences
from isthmus.report import print_report, write_page
from isthmus.score import score
from isthmus.scores import Scores
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


def test_a_training_per_target_chooses_on_its_target_and_scores_it_alone(world: World, recipe: Recipe, tmp_path: Path) -> None:
    """Every domain's scores are those of one joint training by hand whose epoch was chosen on this domain."""
    line = ModelSpec("dnn", args={"dim": 4, "hidden": [8]}, fit={"epochs": 4, "patience": None}, per_target=True, control=None)
    shallow = ModelSpec("popularity", control=None)
    found = compare(dataclasses.replace(recipe, models=(shallow, line)), tmp_path, events=world.events, say=lambda _: None)
    folder = found.parts["dnn", "per-target"][1]
    choices = storage.read_json(folder / "part.json")["choices"]
    assert [(c["domains"], c["targets"]) for c in choices] == [(None, [0]), (None, [1])]
    kept, dataset = Scores.load(folder / "test.parquet").frame, Dataset.load(next(tmp_path.glob("data/*/train")))
    for d, name in enumerate(("big", "tiny")):
        how = How(**{**QUICK, "epochs": 4}, patience=None, seed=1, targets=(d,))
        model = build("dnn", dataset.schema, {"dim": 4, "hidden": [8]}, seed=1)
        run = fit(model, dataset, get_task("ctr"), how)
        log = [json.loads(line) for line in (folder / f"run-{name}" / "log.jsonl").read_text().splitlines()]
        assert [set(entry["metrics"]["auc"]) for entry in log] == [{name, "all"}] * 4
        assert choices[d]["epochs"] == run.best.epoch + 1 == 1 + int(np.argmax([entry["metrics"]["auc"][name] for entry in log]))
        mine = score(run.model, dataset, "test", task=get_task("ctr"), how=how, domains=(d,)).frame
        assert kept.filter(pl.col("domain") == name).equals(mine)
    assert set(found.ledger.frame.filter(pl.col("model") == "dnn")["against"]) == {"shallow"}


def test_a_grid_per_target_is_chosen_for_each_target(world: World, recipe: Recipe, tmp_path: Path) -> None:
    line = ModelSpec("dnn", args={"dim": 4}, grid={"hidden": [[2], [8]]}, per_target=True)
    chosen = dataclasses.replace(recipe, models=(line,), seeds=(0,))
    found = compare(chosen, tmp_path, events=world.events, say=lambda _: None)
    for name, choice in zip(("big", "tiny"), storage.read_json(found.parts["dnn", "per-target"][0] / "part.json")["choices"], strict=True):
        values = [storage.read_json(tmp_path / f"parts/dnn/per-target/0/run-{name}-{i}/result.json")["best"]["value"] for i in (0, 1)]
        assert choice["point"] == {"hidden": [[2], [8]][int(np.argmax(values))]}
    assert {(r["model"], r["reference"]) for r in found.ledger.frame.iter_rows(named=True)} == {("dnn", "dnn (single-domain)")}


def test_a_grid_chooses_settings_of_fit(world: World, recipe: Recipe, tmp_path: Path) -> None:
    """Each point is one training with these settings; the refitted one stops where the best one was, on its schedule."""
    grid = {"hidden": [[4], [8]], "fit.epochs": [1, 3]}
    line = ModelSpec("dnn", args={"dim": 4}, grid=grid, fit={"schedule": "linear"}, control=None)
    chosen = dataclasses.replace(recipe, models=(line, ModelSpec("popularity", control=None)), seeds=(0,), refit=True)
    found = compare(chosen, tmp_path, events=world.events, say=lambda _: None)
    folder = found.parts["dnn", "joint"][0]
    points = [{"hidden": h, "fit.epochs": e} for h in ([4], [8]) for e in (1, 3)]
    runs = [storage.read_json(folder / f"run-{i}" / "run.json") for i in range(4)]
    assert [(r["args"]["hidden"], r["how"]["epochs"]) for r in runs] == [(p["hidden"], p["fit.epochs"]) for p in points]
    best = [storage.read_json(folder / f"run-{i}" / "result.json")["best"] for i in range(4)]
    (choice,) = storage.read_json(folder / "part.json")["choices"]
    at = int(np.argmax([b["value"] for b in best]))
    final = storage.read_json(folder / "final" / "run.json")
    assert choice["point"] == points[at]
    assert (final["args"]["hidden"], final["how"]["epochs"]) == (points[at]["hidden"], points[at]["fit.epochs"])
    assert final["how"]["stop"] == best[at]["epoch"] + 1 == choice["epochs"]


def test_a_control_has_settings_of_its_own(world: World, recipe: Recipe, tmp_path: Path) -> None:
    line = ModelSpec("dnn", args={"dim": 4}, fit={"batch_size": 512, "lr": 2e-3}, alone={"batch_size": 128})
    compare(dataclasses.replace(recipe, models=(line,), seeds=(0,)), tmp_path, events=world.events, say=lambda _: None)
    runs = {path.parts[-4]: storage.read_json(path)["how"] for path in tmp_path.glob("parts/dnn/*/0/*/run.json")}
    assert {scope: (how["batch_size"], how["lr"]) for scope, how in runs.items()} == {"joint": (512, 2e-3), "single-domain": (128, 2e-3)}


def test_a_setting_at_its_default_is_no_part_of_the_question(recipe: Recipe) -> None:
    part = Part(recipe.models[2], "joint", 0, How.of(QUICK), get_task("ctr"), False, "data")
    assert dataclasses.replace(part, how=dataclasses.replace(part.how, schedule="constant", stop=None)).key == part.key
    assert dataclasses.replace(part, how=dataclasses.replace(part.how, schedule="linear")).key != part.key


def test_models_show_their_insides_once(tmp_path: Path) -> None:
    """The first seed of joint networks; one look per training; kept in the part's folder."""
    world = make_world(("a", "b"), users=60, items=40, events=900, label="implicit", seed=2)
    small = {"dim": 4, "hidden": [8]}
    models = (
        ModelSpec("popularity", control=None),
        ModelSpec("adi", args=small),
        ModelSpec("adi", "adi per target", small, per_target=True, control="adi (single-domain)"),
    )
    recipe = Recipe("x", "frame", models, task="retrieval", seeds=(0, 1), fit={**QUICK, "epochs": 1}, resamples=200)
    found = compare(recipe, tmp_path, events=world.events, say=lambda _: None)
    assert sorted(str(p.parent.relative_to(tmp_path / "parts")) for p in tmp_path.rglob("insights.json")) == [
        "adi/joint/0",
        next(str(p.relative_to(tmp_path / "parts")) for p in tmp_path.glob("parts/adi_per_target-*/per-target/0")),
    ]
    seen = recall(tmp_path).insights()
    assert [i.name for i in seen["adi"]] == ["adaptation_user", "adaptation_item"]
    assert [i.name for i in seen["adi per target"]] == [f"adaptation_{side}-{d}" for d in "ab" for side in ("user", "item")]
    assert "target b" in seen["adi per target"][-1].title
    assert {row["domain"] for row in seen["adi"][1].rows} == {"a", "b"}
    against = {(r["model"], r["reference"]) for r in found.ledger.frame.iter_rows(named=True) if r["against"] == "control"}
    assert against == {("adi", "adi (single-domain)"), ("adi per target", "adi (single-domain)")}
    page = write_page(found, tmp_path / "report.html").read_text()
    assert page.count("Adaptation weights, item tower") == 2 * 3  # its caption and its label for screen readers


def test_a_paper_is_held_beside_ours(world: World, recipe: Recipe, tmp_path: Path) -> None:
    values = {"popularity": {"big": 0.01, "tiny": 0.99}, "dnn (single-domain)": {"tiny": 0.5}}
    paper = Paper("Somebody & others, Table 3", "auc", values, "made up")
    mine = dataclasses.replace(recipe, paper=paper, seeds=(0,))
    found = compare(mine, tmp_path, events=world.events, say=lambda _: None)
    assert found.paper is not None
    measured = found.measures.filter((pl.col("metric") == "auc") & (pl.col("part") == "test") & (pl.col("state") == "all"))
    ours = {(model, domain): value for model, domain, value in measured.select("model", "domain", "value").iter_rows()}
    for row in found.paper.iter_rows(named=True):
        assert row["ours"] == pytest.approx(ours[row["model"], row["domain"]], abs=1e-12)
    assert found.paper.select("model", "domain", "verdict").rows()[:2] == [("popularity", "big", "above"), ("popularity", "tiny", "below")]
    page = write_page(recall(tmp_path), tmp_path / "report.html").read_text()
    assert "Somebody &amp; others, Table 3" in page
    said = sentences(found.paper)
    assert said[0].startswith("popularity: above the paper in big")
    for sentence in said:
        assert sentence in page
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_report(found, console)
    console.file.close()
    text = console.export_text()
    for expected in (*said, "made up"):
        assert expected in text
    with pytest.raises(ConfigError, match="did you mean 'tiny'"):
        compare(
            dataclasses.replace(mine, paper=dataclasses.replace(paper, values={"dnn": {"tinny": 0.5}})),
            tmp_path / "other",
            events=world.events,
            say=lambda _: None,
        )
    assert not list((tmp_path / "other").iterdir())


def test_a_recipe_survives_json(recipe: Recipe) -> None:
    paper = Paper("t", "auc", {"dnn": {"tiny": 0.5}}, "n")
    whole = dataclasses.replace(recipe, paper=paper, metrics=("auc",), models=(*recipe.models, ModelSpec("mmoe", per_target=True)))
    assert Recipe.from_dict(json.loads(json.dumps(dataclasses.asdict(whole)))) == whole
    assert Recipe.from_dict(json.loads(json.dumps(dataclasses.asdict(recipe)))) == recipe


def test_only_some_lines_bring_their_controls_and_the_papers_values() -> None:
    models = (
        ModelSpec("dnn", "a"),
        ModelSpec("dnn", "b", per_target=True, control="a (single-domain)"),
        ModelSpec("dnn", "c", control="b"),
        ModelSpec("popularity", control=None),
    )
    paper = Paper("t", "auc", {"a (single-domain)": {"s": 0.5}, "popularity": {"s": 0.5}})
    whole = Recipe("x", "table", models, metrics=("auc",), paper=paper)
    left = whole.only(["c"])
    assert [m.label for m in left.models] == ["a", "b", "c"]
    assert left.paper is not None
    assert list(left.paper.values) == ["a (single-domain)"]
    assert [m.label for m in whole.only(["popularity"]).models] == ["popularity"]
    with pytest.raises(ConfigError, match="did you mean 'popularity'"):
        whole.only(["populrity"])
    with pytest.raises(ConfigError, match="has control 'b'"):
        Recipe("x", "table", (ModelSpec("dnn", "b", control="b"),))


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


def test_processes_share_a_comparison(world: World, recipe: Recipe, tmp_path: Path) -> None:
    """Two at once: the data are encoded once, every part is run once, and both see the whole ledger."""
    begun, lock = Counter[str](), threading.Lock()

    def say(line: str) -> None:
        with lock:
            begun[line] += 1

    with ThreadPoolExecutor(2) as pool:  # a claim holds between threads as between processes
        found = list(pool.map(lambda _: compare(recipe, tmp_path, events=world.events, say=say), range(2)))
    ran = [line for line in begun if line.startswith("[") and "done before" not in line]
    assert len(ran) == 6
    assert all(begun[line] == 1 for line in ran)
    assert sum(n for line, n in begun.items() if line.startswith("encoding")) == 1
    assert found[0].ledger.frame.equals(found[1].ledger.frame)


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
        ({"models": (ModelSpec("shared_botom"),)}, "did you mean 'shared_bottom'"),
        ({"fit": {"epoch": 3}}, "did you mean 'epochs'"),
        ({"fit": {"seed": 3}}, "seeds = "),
        ({"fit": {"targets": [0]}}, "per_target"),
        ({"models": (ModelSpec("dnn", grid={"fit.epoch": [3]}),)}, "did you mean 'epochs'"),
        ({"models": (ModelSpec("dnn", grid={"fit.stop": [3]}),)}, "where to stop"),
        ({"models": (ModelSpec("dnn", fit={"schedule": "liner"}),)}, "did you mean 'linear'"),
        ({"models": (ModelSpec("dnn", alone={"epoch": 3}),)}, "did you mean 'epochs'"),
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
    networks = {"dnn", "shared_bottom", "cross_stitch", "mmoe", "ple", "star"}
    assert names >= {"popularity", "item_knn", "ease", "mf", "cmf", "emcdr", "sscdr", "ptupcdr"} | networks
    across = {s.label: s.control for s in default_models(get_task("retrieval")) if s.args.get("across")}
    assert across["ease across"] == "ease"


def test_a_given_split_is_used(world: World) -> None:
    mine = splits.leave_last(world.events)
    assert make_split(world.events, brought=mine) is mine
    assert make_split(world.events, "given", brought=mine) is mine
    assert make_split(world.events, "leave_last", {"min_events": 4}, mine).params["min_events"] == 4
    assert make_split(world.events).rule == "global_time"
    with pytest.raises(ConfigError, match="brings none"):
        make_split(world.events, "given")
    for rule, brought in ((None, None), (None, mine), ("given", mine)):  # nothing that was asked for is passed over in silence
        with pytest.raises(ConfigError, match="without a rule that takes them: valid"):
            make_split(world.events, rule, {"valid": 0.3}, brought)


def test_the_data_s_key_sees_context_and_what_a_domain_shows(world: World) -> None:
    events = world.events
    plain = np.zeros(len(events), np.float32)
    frames = [dataclasses.replace(events, context={"x": ContextColumn(values)}) for values in (plain, plain + 1)]
    shown = [dataclasses.replace(events, shows=[np.arange(n, dtype=np.int32)] * 2) for n in (3, 4)]
    assert len({fingerprint(e) for e in (events, *frames, *shown)}) == 5


def test_choices_are_ranked_among_sampled_items_when_asked(tmp_path: Path) -> None:
    world = make_world(("big", "tiny"), users=(80, 60), items=60, events=(900, 500), label="implicit", seed=3)
    lines = (ModelSpec("popularity", control=None), ModelSpec("item_knn", control="popularity"))
    recipe = Recipe("x", "frame", lines, task="next_item", sampled=20, seeds=(0,), fit=QUICK, resamples=100)
    compare(recipe, tmp_path, events=world.events, say=lambda _: None)
    for part in ("valid", "test"):
        scores = Scores.load(tmp_path / "parts" / "popularity" / "joint" / "0" / f"{part}.parquet")
        assert scores.kind == "sampled"
        assert set(scores.frame.group_by("group", "domain").len()["len"]) == {21}
    whole = dataclasses.replace(recipe, sampled=None)
    compare(whole, tmp_path / "whole", events=world.events, say=lambda _: None)
    keys = [storage.read_json(folder / "parts/popularity/joint/0/part.json")["key"] for folder in (tmp_path, tmp_path / "whole")]
    assert keys[0] != keys[1], "another question"
    with pytest.raises(ConfigError, match="1 or more items"):
        dataclasses.replace(recipe, sampled=0)
    clicks = make_world(("big", "tiny"), users=(80, 60), items=60, events=(900, 500), seed=3)
    with pytest.raises(ConfigError, match="a task that ranks candidates"):
        compare(dataclasses.replace(recipe, task="ctr"), tmp_path / "clicks", events=clicks.events, say=lambda _: None)


def test_several_processes_may_look_whether_one_folder_can_be_written(tmp_path: Path) -> None:
    """They share the parts of a comparison; one's look never takes away what another's needs."""
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(check_writable, [tmp_path / "out"] * 200))
    assert not list((tmp_path / "out").iterdir())
