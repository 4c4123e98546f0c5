"""Several machines through Ray: the same outcome as on one, and errors that say what to do."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from isthmus import storage
from isthmus.cluster import joined
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.events import Events
from isthmus.data.split import global_time
from isthmus.data.synthetic import make_world
from isthmus.errors import ConfigError

SCRIPT = Path(__file__).parent / "clustered.py"
FIT = ("--epochs", "2", "--set", "batch_size=100", "--set", "threads=1")
RECIPE = """
seeds = [0, 1]
task = "ctr"
data = {{source = "table", path = "{path}", label = "label", time = "time"}}
fit = {{epochs = 1, batch_size = 200, threads = 1}}
models = [{{name = "popularity", control = "none"}}, {{name = "dnn", hidden = [8], fit.lr = {lr}}}]
"""


def events() -> Events:
    return make_world(3, users=100, items=50, events=2000, seed=0).events


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    found = events()
    return encode(found, global_time(found), tmp_path_factory.mktemp("cluster") / "data")


def isthmus(environment: dict[str, str], *words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "isthmus.cli", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=500, check=False, env=environment)


def clustered(environment: dict[str, str], what: str, folder: Path) -> dict[str, Any]:
    """What the other script finds out."""
    command = [sys.executable, str(SCRIPT), what, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "found.json").read_text())


def test_jobs_are_spread_over_a_cluster(ray_environment: dict[str, str], tmp_path: Path) -> None:
    found = clustered(ray_environment, "jobs", tmp_path)
    assert found["usage"] == "0"
    assert found["share"] == [1, 2]
    assert found["squares"] == [[3, 9], [5, 25], [7, 49]]
    assert found["failed"] == ["FitError", "thirteen came", "  expected: another number", "  to do: leave it out"]
    assert found["said"][0].endswith("13)  (failed)")
    assert found["large"][:2] == ["ConfigError", "1 processes of 1000 CPUs and 0 GPUs each, and a cluster with room for 0"]
    assert found["many"][1].startswith("1000 processes of 1 CPUs and 0 GPUs each, and a cluster with room for ")
    assert found["unseen"][0] == "StorageError"
    assert "is not seen from the nodes" in found["unseen"][1]
    assert not list(tmp_path.glob(".seen*"))


@pytest.mark.slow
def test_gpus_are_shared_as_asked(ray_environment: dict[str, str], tmp_path: Path) -> None:
    found = clustered(ray_environment, "gpus", tmp_path)
    assert {name: found[name] for name in ("auto", "cuda", "cpu", "told")} == {"auto": 1, "cuda": 1, "cpu": 0, "told": 0.5}
    assert found["three"][1] == "3 processes of 1 CPUs and 0.5 GPUs each, and a cluster with room for 2"
    assert found["seen"] == ["0", "0"]
    assert found["left"], "who joins a Ray that was there before leaves it there"


def test_without_ray_it_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'isthmus\[ray\]'"), joined(tmp_path):
        pass


def test_a_cluster_that_is_not_there_is_said_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with pytest.raises(ConfigError, match=r"(?s)cluster at 127.0.0.1:1 cannot be used.*unset RAY_ADDRESS"), joined(tmp_path):
        pass


def test_processes_are_started_one_way(data: Dataset, tmp_path: Path) -> None:
    done = isthmus({**os.environ}, "fit", data.path, "-o", tmp_path / "run", "--ddp", "2", "--ray", "2")
    assert done.returncode == 2
    assert "--ray beside --ddp or torchrun" in done.stderr


def test_a_data_set_travels_as_its_folder(data: Dataset) -> None:
    sent = pickle.dumps(data)
    assert len(sent) < 500
    there = pickle.loads(sent)
    assert there.path == data.path.absolute()
    assert there.part("train").user.tolist() == data.part("train").user.tolist()


@pytest.mark.slow
def test_ranks_on_ray_train_what_those_of_torchrun_do(data: Dataset, ray_environment: dict[str, str], tmp_path: Path) -> None:
    command = ("fit", data.path, "-m", "mmoe", *FIT)
    for kind in ("--ddp", "--ray"):
        done = isthmus(ray_environment, *command, "-o", tmp_path / kind, kind, "2")
        assert (done.returncode, done.stdout.count("kept epoch 2")) == (0, 1), done.stderr
    ddp, ray = (tmp_path / kind / "model.safetensors" for kind in ("--ddp", "--ray"))
    assert ddp.read_bytes() == ray.read_bytes()
    assert sorted(path.name for path in ray.parent.iterdir()) == ["log.jsonl", "model.safetensors", "result.json", "run.json"]
    again = isthmus(ray_environment, *command, "-o", ray.parent, "--ray", "2")
    assert (again.returncode, again.stderr.count("holds a run already")) == (1, 1), again.stderr
    wild = isthmus(ray_environment, *command, "-o", tmp_path / "wild", "--ray", "2", "--set", "lr=1e38")
    assert (wild.returncode, wild.stderr.count("the loss is not a number")) == (1, 1), wild.stderr
    assert "Traceback" not in again.stderr + wild.stderr


@pytest.mark.slow
def test_it_goes_on_after_a_process_died(data: Dataset, ray_environment: dict[str, str], tmp_path: Path) -> None:
    run, straight = tmp_path / "run", tmp_path / "straight"
    command = ("fit", data.path, "-m", "dnn", "--epochs", "20", "--set", "patience=20", *FIT[2:])
    process = subprocess.Popen(
        [sys.executable, "-m", "isthmus.cli", *map(str, command), "-o", str(run), "--ray", "2"],
        stderr=subprocess.PIPE,
        text=True,
        env=ray_environment,
    )
    while not list(run.glob("checkpoint-*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.kill(worker(run), signal.SIGKILL)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "a process died, or lost the others" in said
    assert "--resume" in said
    done = isthmus(ray_environment, *command, "-o", run, "--ray", "2", "--resume")
    assert done.returncode == 0, done.stderr
    assert isthmus(ray_environment, *command, "-o", straight, "--ddp", "2").returncode == 0
    assert (run / "model.safetensors").read_bytes() == (straight / "model.safetensors").read_bytes()


def worker(run: Path) -> int:
    """A process that trains, found by its name and by what it has open: other clusters may run beside."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name = (process / "cmdline").read_bytes()
            mapped = (process / "maps").read_text()
        except OSError:
            continue
        if name.startswith(b"ray::RayTrainWorker") and str(run.parent.parent) in mapped:
            return int(process.name)
    raise AssertionError("no process trains")


@pytest.mark.slow
def test_a_comparison_on_ray_is_that_of_one_process(ray_environment: dict[str, str], tmp_path: Path) -> None:
    found = events()
    pl.DataFrame({name: getattr(found, name) for name in ("user", "item", "domain", "time", "label")}).write_parquet(tmp_path / "e.parquet")
    recipe = tmp_path / "recipe.toml"
    for lr, kind, code in ((1e38, "--ray", 1), (1e-2, "--ray", 0), (1e-2, "--cell", 0)):
        recipe.write_text(RECIPE.format(path=tmp_path / "e.parquet", lr=lr))
        done = isthmus(ray_environment, "compare", recipe, "-o", tmp_path / kind, *([kind] if kind == "--ray" else []))
        assert done.returncode == code, done.stderr
        assert ("expected: finite numbers" in done.stderr) == ("(failed)" in done.stdout) == bool(code)
        assert "Traceback" not in done.stderr
        if not code:
            assert all(f"[{number}/5] " in done.stdout for number in range(1, 6))
    ray, alone = tmp_path / "--ray", tmp_path / "--cell"
    for name in ("measures.parquet", "ledger.parquet"):
        assert pl.read_parquet(ray / name).equals(pl.read_parquet(alone / name))
    weights = sorted(path.relative_to(alone) for path in alone.rglob("model.safetensors"))
    assert len(weights) == 9  # popularity; two seeds of dnn, and of dnn in each of three domains
    assert all((ray / path).read_bytes() == (alone / path).read_bytes() for path in weights)
    assert storage.read_json(ray / "comparison.json") == storage.read_json(alone / "comparison.json")
