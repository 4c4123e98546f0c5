"""A search for settings: what is asked for is read strictly, what was tried is kept, and the test part has no say."""

from __future__ import annotations

import dataclasses
import json
import math
import signal
import subprocess
import sys
import time
import tomllib
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from isthmus import storage
from isthmus.cli import _settings
from isthmus.config import parse_recipe
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.split import TEST, global_time
from isthmus.data.synthetic import make_world
from isthmus.errors import CheckpointError, ConfigError, FitError, StorageError
from isthmus.space import Choice, Range, Space, parse_space, read_space
from isthmus.trials import FAILED, FINISHED, INTERRUPTED, RUNNING, STOPPED, Search, Trial
from isthmus.tune import _begun, _checked, _fitted, _followed, search

SPACE = """
[tune]
trials = {trials}
parallel = 1
[model]
name = "dnn"
hidden = {{choices = [[8], [16, 8]]}}
[fit]
epochs = {epochs}
patience = {epochs}
threads = 1
batch_size = 100
lr = {{choices = [1e38, 1e-2, 1e-5]}}
"""


def encoded(folder: Path, lied: bool = False) -> Dataset:
    """A small world; ``lied``: with other labels in the test part."""
    events = make_world(3, users=100, items=50, events=2000, seed=0).events
    split = global_time(events)
    if lied:
        assert events.label is not None
        events = dataclasses.replace(events, label=np.where(split.part == TEST, 1 - events.label, events.label).astype(events.label.dtype))
        split = global_time(events)
    return encode(events, split, folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return encoded(tmp_path_factory.mktemp("tune") / "data")


def space(**told: Any) -> dict[str, Any]:
    return {"model": {"name": "mmoe", "experts": {"choices": [2, 4]}}, "fit": {"lr": {"from": 1e-4, "to": 1e-1, "log": True}}, **told}


# What is asked for


def test_a_space_is_read(tmp_path: Path) -> None:
    path = tmp_path / "space.toml"
    path.write_text(SPACE.format(trials=7, epochs=8))
    found = read_space(path)
    assert (found.model, found.trials, found.args) == ("dnn", 7, {})
    assert found.parameters == {"hidden": Choice(([8], [16, 8])), "fit.lr": Choice((1e38, 1e-2, 1e-5))}
    point = {"hidden": [16, 8], "fit.lr": 1e-5}
    assert found.point(found.suggestion(point)) == point
    assert found.args_at(point) == {"hidden": [16, 8]}
    assert (found.how_at(point).lr, found.how_at(point).batch_size, found.how_at(point).seed) == (1e-5, 100, 0)
    assert found.epochs == 8
    assert parse_space(space(fit={"epochs": {"from": 2, "to": 30}})).epochs == 30


def test_the_printed_space_is_one() -> None:
    printed = (Path(__file__).parents[2] / "docs" / "scaling.md").read_text(encoding="utf-8").split("```toml\n")[1].split("```")[0]
    assert set(parse_space(tomllib.loads(printed)).parameters) == {"experts", "fit.lr", "fit.batch_size"}


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"tunes": {}}, "unknown key 'tunes'.*did you mean 'tune'"),
        ({"tune": {"trial": 3}}, "unknown key 'trial'.*did you mean 'trials'"),
        ({"tune": {"trials": "3"}}, "trials = '3'.*int"),
        ({"tune": {"trials": 0}}, "trials = 0"),
        ({"tune": 3}, "tune = 3"),
        ({"model": {"experts": 2}}, "name = None"),
        ({"model": {"name": "mmoe", "expert": {"choices": [1, 2]}}}, "unknown setting 'expert'.*did you mean 'experts'"),
        ({"model": {"name": "mmoe", "expert": 3}}, "unknown setting 'expert'.*did you mean 'experts'"),
        ({"model": {"name": "mmo"}}, "did you mean 'mmoe'"),
        ({"model": {"name": "mmoe", "experts": {"choice": [1, 2]}}}, "unknown key 'choice'.*did you mean 'choices'"),
        ({"model": {"name": "mmoe", "experts": {"choices": []}}}, "with at least one"),
        ({"model": {"name": "mmoe", "experts": {"choices": [1], "log": True}}}, "choices = .* alone"),
        ({"fit": {"lr": {"from": 0.1, "to": 0.01}}}, "from below to"),
        ({"fit": {"lr": {"from": 0.0, "to": 0.01, "log": True}}}, "above 0"),
        ({"fit": {"lr": {"to": 0.01}}}, "from below to"),
        ({"fit": {"lr": {"from": -1.0, "to": 0.01}}}, "lr = -1.0"),
        ({"fit": {"learning_rate": {"from": 0.1, "to": 0.2}}}, "unknown setting 'learning_rate'"),
        ({"fit": {"sampler": {"choices": ["auto", "uniforn"]}}}, "did you mean 'uniform'"),
        ({"fit": {"stop": 3}}, "fit setting 'stop'"),
        ({"fit": {"monitor": "auc"}}, r"metric = ... in \[tune\]"),
        ({"model": {"name": "mmoe"}, "fit": {}}, "without a parameter"),
    ],
)
def test_a_wrong_space_is_refused(told: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        parse_space(space(**told))


def test_a_space_must_go_with_the_data(data: Dataset, tmp_path: Path) -> None:
    task, last = _checked(data, parse_space(space()), tmp_path)
    assert (task.name, last) == ("ctr", "fit")
    with pytest.raises(ConfigError, match="rating"):
        _checked(data, parse_space(space(task="rating")), tmp_path)
    with pytest.raises(ConfigError, match="aucc"):
        _checked(data, parse_space(space(tune={"metric": "aucc"})), tmp_path)
    events = make_world(2, users=30, items=20, events=300, seed=0).events
    bare = encode(events, global_time(events).merged(), tmp_path / "bare")
    with pytest.raises(ConfigError, match="without validation rows"):
        _checked(bare, parse_space(space()), tmp_path)
    assert not (tmp_path / "search.json").exists()


def test_distributions_are_optunas() -> None:
    numbers, whole, log = Range(0.0, 0.5), Range(1, 8), Range(1e-4, 1e-1, log=True)
    assert repr(numbers.distribution()) == "FloatDistribution(high=0.5, log=False, low=0.0, step=None)"
    assert repr(whole.distribution()) == "IntDistribution(high=8, log=False, low=1, step=1)"
    assert repr(log.distribution()) == "FloatDistribution(high=0.1, log=True, low=0.0001, step=None)"
    assert repr(Choice(([8], "a")).distribution()) == """CategoricalDistribution(choices=('[8]', '"a"'))"""


@pytest.mark.parametrize("package", ["ray", "optuna"])
def test_without_the_extra_it_says_how_to_get_it(data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ConfigError, match=r"pip install 'isthmus\[ray\]'"):
        search(data, parse_space(space()), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# What was tried


def tried(folder: Path) -> Search:
    found = parse_space(
        space(tune={"metric": "logloss", "trials": 9}, model={"name": "mmoe", "experts": {"choices": [2, 4]}, "tower": [8]})
    )
    found = dataclasses.replace(found, task="ctr")
    trials = [
        Trial({"experts": 2, "fit.lr": 0.01}, FINISHED, 0.4, 20),
        Trial({"experts": 4, "fit.lr": 0.02}, STOPPED, 0.3, 3),
        Trial({"experts": 4, "fit.lr": 0.09}, FAILED, error="the loss is not a number\n  expected: finite losses"),
        Trial({"experts": 2, "fit.lr": 0.03}, RUNNING),
    ]
    return Search(found, "logloss", folder, {"model": "mmoe", "seed": 0}, trials)


def test_the_best_settings_are_a_line_of_a_recipe_and_options_of_fit(tmp_path: Path) -> None:
    found = tried(tmp_path)
    assert found.best.value == 0.3
    raw = {**tomllib.loads(found.to_toml()), "data": {"source": "table", "path": "x"}}
    (spec,) = parse_recipe(raw).models
    assert (spec.name, spec.args, spec.fit) == ("mmoe", {"tower": [8], "experts": 4}, {"lr": 0.02, "monitor": "logloss"})
    words = found.to_options().replace("'", "").split()
    assert words[:6] == ["--model", "mmoe", "--task", "ctr", "--seed", "0"]
    assert _settings([word for word in words[6:] if word != "--set"]) == {**spec.args, **spec.fit}
    assert found.table()["logloss"].to_list() == [0.3, 0.4, None, None]
    assert found.table()["state"].to_list() == [STOPPED, FINISHED, FAILED, RUNNING]
    assert found.trials[2].describe("logloss") == "experts=4  fit.lr=0.09  failed: the loss is not a number"
    assert found.trials[1].describe("logloss") == "experts=4  fit.lr=0.02  logloss 0.3000, stopped after 3 epochs"
    for trial in found.trials:
        trial.value = None
    with pytest.raises(FitError, match=r"(?s)no trial of 4.*the loss is not a number"):
        _ = found.best


def test_what_was_interrupted_goes_on_once(tmp_path: Path) -> None:
    found = tried(tmp_path)
    found.open(resume=False)
    again = Search(found.space, found.metric, tmp_path, found.asked)
    with pytest.raises(StorageError, match="holds a search already"):
        again.open(resume=False)
    again.open(resume=True)
    assert [trial.state for trial in again.trials] == [FINISHED, STOPPED, FAILED, INTERRUPTED]
    assert len(again.ended) == 3
    first = again.begin({"experts": 2, "fit.lr": 0.03})
    assert first is again.trials[3]
    assert again.begin({"experts": 2, "fit.lr": 0.03}) is not first
    assert len(storage.read_json(tmp_path / "search.json")["trials"]) == 5
    other = Search(found.space, found.metric, tmp_path, {**found.asked, "seed": 1})
    with pytest.raises(CheckpointError, match="began with seed = 0"):
        other.open(resume=True)


def test_epochs_are_told_as_fit_logs_them_and_the_test_part_has_no_say(data: Dataset, tmp_path: Path) -> None:
    asked = dataclasses.replace(read(tmp_path, 1), task="ctr", metric="auc")
    point, values = {"hidden": [8], "fit.lr": 1e-2}, []
    for name, dataset in (("told", data), ("lied", encoded(tmp_path / "other", lied=True))):
        assert (dataset.part("test").label == data.part("test").label).all() == (name == "told")
        training = _begun(partial(_fitted, asked, point, str(dataset.path), tmp_path / name))
        found = list(_followed(training, tmp_path / name / "log.jsonl", "fit", "auc"))
        assert [epoch for epoch, _ in found] == list(range(1, 9))
        best = storage.read_json(tmp_path / name / "result.json")["best"]
        assert found[-1][1] == max(value for _, value in found) == best["value"]
        values.append(found)
    assert values[0] == values[1]


def read(folder: Path, trials: int, epochs: int = 8) -> Space:
    path = folder / "space.toml"
    path.write_text(SPACE.format(trials=trials, epochs=epochs))
    return read_space(path)


def test_a_failing_trial_says_why(data: Dataset, tmp_path: Path) -> None:
    asked = dataclasses.replace(read(tmp_path, 1), task="ctr", metric="auc")
    training = _begun(partial(_fitted, asked, {"hidden": [8], "fit.lr": 1e38}, str(data.path), tmp_path / "run"))
    assert all(math.isnan(value) for _, value in _followed(training, tmp_path / "run" / "log.jsonl", "fit", "auc"))
    with pytest.raises(FitError, match="not a number"):
        training.result()


@pytest.mark.slow
def test_a_search_is_interrupted_and_goes_on(data: Dataset, ray_environment: dict[str, str], tmp_path: Path) -> None:
    read(tmp_path, 6, epochs=20)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "isthmus.cli", "tune", str(data.path), str(tmp_path / "space.toml"), "-o", str(out)]
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ray_environment)
    while not list(out.glob("trials/*/checkpoint-*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=200)
    assert process.returncode not in (0, 2), said
    assert "go on with resume=True (isthmus tune --resume)" in said
    assert "Traceback" not in said
    before = trials(out)
    assert any(one["state"] == RUNNING for one in before)
    done = subprocess.run([*command, "--resume"], text=True, capture_output=True, env=ray_environment, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    after = trials(out)
    assert len(after) == 6
    assert [one["settings"] for one in after[: len(before)]] == [one["settings"] for one in before]
    assert all(one == now for one, now in zip(before, after, strict=False) if one["state"] != RUNNING)
    assert all((one["state"] == FAILED) == (one["settings"]["fit.lr"] == 1e38) for one in after)
    assert {one["state"] for one in after} == {FINISHED, STOPPED, FAILED}
    assert all(one["epochs"] < 20 for one in after if one["state"] == STOPPED)
    assert all("not a number" in one["error"] for one in after if one["state"] == FAILED)
    assert sorted(path.name for path in out.iterdir()) == ["best.toml", "search.json", "trials", "trials.parquet"]
    assert len(pl.read_parquet(out / "trials.parquet")) == 6
    line = next(line for line in done.stdout.splitlines() if line.startswith("isthmus fit "))
    words = line.replace("'", "").removesuffix(" -o ...").split(" --set ")
    own = [word for pair in words[1:] for word in ("--set", pair)]
    fitted = subprocess.run(
        [sys.executable, "-m", "isthmus.cli", *words[0].split()[1:], *own, "-o", str(tmp_path / "run")],
        capture_output=True, text=True, env=ray_environment, timeout=300, check=False,
    )  # fmt: skip
    assert fitted.returncode == 0, fitted.stderr
    best = max(one["value"] for one in after if one["value"] is not None)
    value = json.loads((tmp_path / "run" / "result.json").read_text())["best"]["value"]
    assert value == best


def trials(out: Path) -> list[dict[str, Any]]:
    return storage.read_json(out / "search.json")["trials"]
