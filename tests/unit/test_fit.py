"""The loop: what it keeps, what it refuses, and that an interruption leaves no trace in the result."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
import pytest
import torch
from torch import nn

from isthmus.batch import Batch, Needs, Output
from isthmus.checkpoint import Checkpoint, load_tensors, save_weights
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.events import read_events
from isthmus.data.split import cold_users, global_time
from isthmus.data.synthetic import make_world
from isthmus.errors import CheckpointError, ConfigError, FitError, StorageError
from isthmus.fit import Best, How, Run, build, clip_gradients, fit, in_half, load_run, pick_device, resume
from isthmus.layers.features import EntityFields
from isthmus.layers.table import TABLE_LR, Table
from isthmus.measure import measure
from isthmus.model import Model, Stage
from isthmus.schema import Schema
from isthmus.score import score
from isthmus.task import get_task

CTR = get_task("ctr")
HOW = How(epochs=3, batch_size=256, lr=1e-2, patience=None, device="cpu", threads=1, progress=False, checkpoint_minutes=1e9)


class Small(Model):
    """Sparse and dense tables, dropout, one extra loss; calls ``trap`` at its ``at``-th training batch."""

    needs = Needs(history=True)
    trap: ClassVar[Callable[[], Any]] = lambda: None
    at: ClassVar[int] = 0

    def __init__(self, schema: Schema, *, dim: int = 4) -> None:
        super().__init__(schema)
        self.users = Table(schema.user.size, dim, sparse=True)
        self.items = EntityFields(schema.item, dim)
        self.drop = nn.Dropout(0.3)
        self.out = nn.Linear(2 * dim, 1)

    def forward(self, batch: Batch) -> Output:
        if self.training:
            type(self).at -= 1
            if type(self).at == 0:
                type(self).trap()
        item = self.items(batch.item).mean(-2)
        user = self.users(batch.user)[:, None].expand_as(item)
        logit = self.out(self.drop(torch.cat([user * item, user + item], -1)))[..., 0]
        return Output(logit, {"small": 1e-3 * logit.square().mean()} if self.training else {})


class Steps(Small):
    """Tables first, on the first domain; then a number in closed form, with chance in it; then the head alone."""

    shift: torch.Tensor

    def __init__(self, schema: Schema) -> None:
        super().__init__(schema)
        self.register_buffer("shift", torch.zeros(()))

    def forward(self, batch: Batch) -> Output:
        output = super().forward(batch)
        return Output(output.logit + self.shift, output.extra)

    def stages(self) -> list[Stage]:
        return [
            Stage("tables", [*self.users.parameters(), *self.items.parameters()], domains=(0,)),
            Stage("shift", solve=self._shift),
            Stage("head", list(self.out.parameters())),
        ]

    def _shift(self, dataset: Dataset, domains: tuple[int, ...]) -> None:
        self.shift += len(domains) + torch.rand(())


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_data(tmp_path_factory.mktemp("data") / "clicks")


def make_data(path: Path, seed: int = 0) -> Dataset:
    events = make_world(2, users=60, items=40, events=1500, seed=seed).events
    return encode(events, global_time(events), path)


@pytest.fixture(autouse=True)
def _no_trap() -> None:
    Small.at = Steps.at = 0


def small(data: Dataset, kind: type[Small] = Small, seed: int = 0) -> Small:
    torch.manual_seed(seed)
    return kind(data.schema)


def without_clock(log: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in entry.items() if k != "rows_per_s"} for entry in log]


def assert_same(run: Run, other: Run) -> None:
    """Bit for bit: weights, log, choice of the best epoch."""
    state, others = run.model.state_dict(), other.model.state_dict()
    assert state.keys() == others.keys()
    for name, tensor in state.items():
        assert torch.equal(tensor, others[name]), name
    assert without_clock(run.log) == without_clock(other.log)
    assert run.best == other.best


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


# What a run leaves


def test_a_run_reloads_without_data(data: Dataset, tmp_path: Path) -> None:
    model = build("dnn", data.schema, {"dim": 4, "hidden": (8,)})
    run = fit(model, data, CTR, HOW, tmp_path / "run")
    assert files(tmp_path / "run") == ["log.jsonl", "model.safetensors", "result.json", "run.json"]
    back = load_run(tmp_path / "run")
    assert back.model.args == {"dim": 4, "hidden": [8]}
    assert (back.how, back.task) == (HOW, CTR)
    assert not back.model.training
    assert_same(run, back)


def test_the_log_has_losses_by_name_and_metrics_by_domain(data: Dataset, tmp_path: Path) -> None:
    run = fit(small(data), data, CTR, HOW, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert lines == run.log
    assert [entry["epoch"] for entry in lines] == [0, 1, 2]
    for entry in lines:
        losses, metrics = entry["losses"], entry["metrics"]
        assert losses["total"] == pytest.approx(losses["loss"] + losses["small"])
        assert set(metrics) == set(CTR.metrics)
        assert set(metrics["auc"]) == {"all", *data.schema.domain_names}
        assert metrics["auc"]["all"] == pytest.approx(np.mean([metrics["auc"][d] for d in data.schema.domain_names]))
        assert entry["rows"] == len(data.part("train"))
        assert entry["rows_per_s"] > 0
        assert entry["lr"] == [1e-2, 4e-2]


def test_the_loss_in_the_log_is_the_mean_over_steps(data: Dataset) -> None:
    class Constant(Model):
        def __init__(self, schema: Schema) -> None:
            super().__init__(schema)
            self.bias = nn.Parameter(torch.zeros(()))

        def forward(self, batch: Batch) -> Output:
            return Output(self.bias.expand(batch.item.shape) * 0)

    run = fit(Constant(data.schema), data, get_task("ctr"), How(epochs=1, monitor="logloss", device="cpu"))
    assert run.log[0]["losses"]["loss"] == pytest.approx(math.log(2))
    assert run.log[0]["metrics"]["logloss"]["all"] == pytest.approx(math.log(2))


def test_fit_leaves_the_callers_random_numbers_and_threads_alone(data: Dataset) -> None:
    torch.manual_seed(3)
    ahead = torch.rand(2)
    torch.manual_seed(3)
    threads = torch.get_num_threads()
    fit(build("dnn", data.schema, {}), data, CTR, How(epochs=1, threads=threads + 1, device="cpu"))
    assert torch.equal(torch.rand(2), ahead)
    assert torch.get_num_threads() == threads


def test_seeds_decide_everything(data: Dataset) -> None:
    runs = [fit(build("dnn", data.schema, {"dropout": 0.2}, seed=s), data, CTR, How(epochs=1, seed=s, device="cpu")) for s in (5, 5, 6)]
    assert_same(runs[0], runs[1])
    assert runs[0].log[-1]["losses"] != runs[2].log[-1]["losses"]


def test_it_learns(data: Dataset) -> None:
    run = fit(small(data), data, CTR, How(epochs=15, batch_size=128, lr=1e-2, device="cpu"))
    assert run.best.value > 0.6
    assert run.log[-1]["losses"]["loss"] < run.log[0]["losses"]["loss"] - 0.02


def test_it_learns_in_half_precision(data: Dataset) -> None:
    how = How(epochs=15, batch_size=128, lr=1e-2, device="cpu")
    runs = [fit(small(data), data, CTR, dataclasses.replace(how, precision=precision)) for precision in ("float32", "bfloat16")]
    single, half = (run.log[-1]["losses"] for run in runs)
    assert single != half
    assert runs[1].best.value == pytest.approx(runs[0].best.value, abs=0.02)
    assert {p.dtype for p in runs[1].model.parameters()} == {torch.float32}
    found = fit(small(data), data, CTR, dataclasses.replace(how, precision="auto"))
    assert found.log[-1]["losses"] == (half if in_half("auto", torch.device("cpu")) else single)
    with pytest.raises(ConfigError, match=r"(?s)precision 'half'.*'float32', 'bfloat16', 'auto'"):
        How(precision="half")


@pytest.mark.skipif(not Path("/proc/cpuinfo").is_file(), reason="a system without /proc/cpuinfo")
def test_auto_looks_at_the_processor() -> None:
    flags = Path("/proc/cpuinfo").read_text()
    assert in_half("auto", torch.device("cpu")) == ("avx512_bf16" in flags)
    assert in_half("bfloat16", torch.device("cpu"))
    assert not in_half("float32", torch.device("cpu"))
    assert not in_half("auto", torch.device("mps"))


# Early stop, best weights


def test_early_stopping_keeps_the_best_weights(data: Dataset, tmp_path: Path) -> None:
    how = How(epochs=40, batch_size=64, lr=0.3, patience=2, threads=1, device="cpu", progress=False)  # overfits within a few epochs
    run = fit(small(data), data, CTR, how, tmp_path / "run")
    values = [entry["metrics"]["auc"]["all"] for entry in run.log]
    best = int(np.argmax(values))
    assert len(values) == best + 3 < 40
    assert run.best == Best(best, "auc", values[best], {d: run.log[best]["metrics"]["auc"][d] for d in data.schema.domain_names})
    assert [entry["best"] for entry in run.log] == [v > max(values[:i], default=-1) for i, v in enumerate(values)]
    short = fit(small(data), data, CTR, How(**{**how.__dict__, "epochs": best + 1}))
    assert_same(Run(run.model, CTR, how, run.best, []), Run(short.model, CTR, how, short.best, []))
    assert_same(Run(run.model, CTR, how, run.best, run.log), load_run(tmp_path / "run", small(data, seed=9)))


def test_keep_last_runs_all_epochs_and_keeps_the_last_weights(data: Dataset, tmp_path: Path) -> None:
    how = How(epochs=5, batch_size=64, lr=0.3, patience=1, keep="last", threads=1, device="cpu", progress=False)  # overfits at once
    run = fit(small(data), data, CTR, how, tmp_path / "run")
    values = [entry["metrics"]["auc"]["all"] for entry in run.log]
    assert np.argmax(values) < 4, "else the best is the last"
    assert (len(values), run.best.epoch, run.best.value) == (5, 4, values[-1])
    again = measure(score(run.model, data, "valid", task=CTR, how=how), ("auc",), resamples=0)
    assert again.filter(domain="all", state="all")["value"].item() == pytest.approx(values[-1])
    assert_same(Run(run.model, CTR, how, run.best, run.log), load_run(tmp_path / "run", small(data, seed=9)))
    with pytest.raises(ConfigError, match=r"(?s)keep 'lst'.*'best', 'last'"):
        How(keep="lst")


@pytest.mark.parametrize(("schedule", "half"), [("constant", 1.0), ("linear", 0.5), ("cosine", 0.5)])
def test_rates_follow_the_schedule(data: Dataset, schedule: str, half: float) -> None:
    how = How(epochs=4, schedule=schedule, batch_size=64, lr=0.1, patience=None, threads=1, device="cpu", progress=False)
    assert (how.rate(0), how.rate(2)) == (1.0, pytest.approx(half))
    assert how.rate(4) == pytest.approx(1.0 if schedule == "constant" else 0.0)
    steps = math.ceil(len(data.part("train")) / how.batch_size)
    run = fit(small(data), data, CTR, how)
    for epoch, entry in enumerate(run.log):  # the rate of the epoch's last step
        assert entry["lr"] == pytest.approx([base * how.rate(epoch + (steps - 1) / steps) for base in (TABLE_LR, 0.1)])


def test_a_schedule_goes_on_where_it_stopped(data: Dataset, tmp_path: Path) -> None:
    how = dataclasses.replace(HOW, schedule="linear")
    straight = fit(small(data), data, CTR, how)
    assert straight.best != fit(small(data), data, CTR, HOW).best, "the schedule changes the outcome"
    interrupted(Small, data, how, tmp_path / "run", 5, seed=0)
    assert_same(straight, fit(small(data, seed=77), data, CTR, how, tmp_path / "run", resume=True))


def test_momentum_reaches_the_optimiser(data: Dataset) -> None:
    how = dataclasses.replace(HOW, momentum=0.0)
    assert fit(small(data), data, CTR, how).best != fit(small(data), data, CTR, HOW).best
    with pytest.raises(ConfigError, match=r"(?s)momentum = 1.*below 1"):
        How(momentum=1.0)


def test_stop_ends_early_on_the_same_schedule(data: Dataset) -> None:
    how = How(epochs=5, schedule="cosine", batch_size=64, lr=0.05, patience=None, threads=1, device="cpu", progress=False)
    long, short = (fit(small(data), data, CTR, dataclasses.replace(how, stop=stop)) for stop in (None, 2))
    assert without_clock(short.log) == without_clock(long.log)[:2]


def test_a_metric_to_be_lowered_is_lowered(data: Dataset) -> None:
    run = fit(small(data), data, CTR, How(epochs=6, batch_size=64, lr=0.1, patience=None, threads=1, monitor="logloss", device="cpu"))
    values = [entry["metrics"]["logloss"]["all"] for entry in run.log]
    assert run.best.epoch == int(np.argmin(values))
    assert run.best.value == min(values)


def test_without_validation_rows_the_last_weights_stay(tmp_path: Path) -> None:
    events = make_world(2, users=60, items=40, events=1500).events
    data = encode(events, global_time(events).merged(), tmp_path / "data")
    run = fit(small(data), data, CTR, How(epochs=3, patience=1, device="cpu"), tmp_path / "run")
    assert [entry["metrics"] for entry in run.log] == [{}, {}, {}]
    assert run.best.epoch == 2
    assert math.isnan(run.best.value)
    assert math.isnan(load_run(tmp_path / "run", small(data)).best.value)


def test_one_domain_alone(data: Dataset) -> None:
    run = fit(small(data), data, CTR, How(epochs=1, domains=(1,), device="cpu"))
    offsets = data.part("train").offsets
    assert run.log[0]["rows"] == offsets[2] - offsets[1]
    assert set(run.log[0]["metrics"]["auc"]) == {"all", data.schema.domain_names[1]}


class Reads(Small):
    """Notes how much of other domains' histories its training rows have."""

    needs = Needs(history=True, cross_history=True)
    seen: ClassVar[list[int]] = []

    def forward(self, batch: Batch) -> Output:
        if self.training:
            assert batch.cross_history is not None
            self.seen.append(int((batch.cross_history != 0).sum()))
        return super().forward(batch)


def test_training_on_tested_domains_alone_keeps_the_others_histories(tmp_path: Path) -> None:
    events = make_world(3, users=60, items=30, events=900, user_overlap=1.0, seed=1).events
    data = encode(events, cold_users(events, "domain1", 0.3, valid=0.3), tmp_path / "data")
    offsets = data.part("train").offsets
    for train_on, rows in (("all", offsets[3]), ("tested", offsets[2] - offsets[1])):
        Reads.seen = []
        run = fit(small(data, Reads), data, CTR, How(epochs=1, train_on=train_on, device="cpu", progress=False))
        assert run.log[0]["rows"] == rows
        assert sum(Reads.seen) > 0
    with pytest.raises(ConfigError, match="did you mean 'tested'"):
        How(train_on="test")


# Stages


def test_targets_choose_the_epoch_and_nothing_else(data: Dataset) -> None:
    every, one = (fit(small(data), data, CTR, dataclasses.replace(HOW, targets=t)) for t in (None, (1,)))
    for a, b in zip(every.log, one.log, strict=True):
        assert a["losses"] == b["losses"], "training does not depend on who is watched"
        name = data.schema.domain_names[1]
        assert set(b["metrics"]["auc"]) == {name, "all"}
        assert b["metrics"]["auc"]["all"] == b["metrics"]["auc"][name] == pytest.approx(a["metrics"]["auc"][name])
    values = [entry["metrics"]["auc"]["all"] for entry in one.log]
    assert one.best.epoch == values.index(max(values))


def test_stages_train_their_own_weights_on_their_own_domains(data: Dataset) -> None:
    model = small(data, Steps)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run = fit(model, data, CTR, HOW)
    by_stage = {name: [e for e in run.log if e["stage"] == name] for name in ("tables", "shift", "head")}
    assert [len(v) for v in by_stage.values()] == [3, 1, 3]
    offsets = data.part("train").offsets
    assert by_stage["tables"][0]["rows"] == offsets[1]
    assert by_stage["head"][0]["rows"] == offsets[2]
    assert set(by_stage["tables"][0]["metrics"]["auc"]) == {"all", data.schema.domain_names[0]}
    assert 2 <= model.shift < 3
    assert all(p.requires_grad for p in model.parameters())
    assert run.best.value == max(entry["metrics"]["auc"]["all"] for entry in by_stage["head"])
    assert not torch.equal(model.users.weight, before["users.weight"])


def test_a_stage_leaves_other_weights_as_they_are(data: Dataset) -> None:
    class Head(Small):
        def stages(self) -> list[Stage]:
            return [Stage("head", list(self.out.parameters()))]

    model = small(data, Head)
    users, head = model.users.weight.clone(), model.out.weight.clone()
    fit(model, data, CTR, HOW)
    assert torch.equal(model.users.weight, users)
    assert not torch.equal(model.out.weight, head)


def test_a_stage_of_other_domains_is_left_out(data: Dataset) -> None:
    class First(Small):
        def stages(self) -> list[Stage]:
            return [Stage("only", domains=(0,))]

    run = fit(small(data, Steps), data, CTR, How(**{**HOW.__dict__, "domains": (1,)}))
    assert [entry["stage"] for entry in run.log] == ["shift", "head", "head", "head"]
    with pytest.raises(ConfigError, match="no stage of First"):
        fit(small(data, First), data, CTR, How(domains=(1,)))


# Interruptions


def interrupted(kind: type[Small], data: Dataset, how: How, folder: Path, at: int, seed: int = 99) -> None:
    """Ctrl-C at the ``at``-th training batch from now, of a model built with ``seed``."""
    kind.trap, kind.at = lambda: signal.raise_signal(signal.SIGINT), at
    with pytest.raises(KeyboardInterrupt):
        fit(small(data, kind, seed), data, CTR, how, folder, resume=True)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", [Small, Steps])
def test_a_resumed_run_equals_an_uninterrupted_one(data: Dataset, tmp_path: Path, kind: type[Small], seed: int) -> None:
    straight = fit(small(data, kind), data, CTR, HOW)
    steps = math.ceil(len(data.part("train")) / HOW.batch_size)
    rng = np.random.default_rng(seed)
    interrupted(kind, data, HOW, tmp_path / "run", int(rng.integers(1, steps)), seed=0)
    for at in rng.integers(1, steps + 1, 2):  # whatever weights the model comes with then
        interrupted(kind, data, HOW, tmp_path / "run", int(at))
    assert_same(straight, fit(small(data, kind, seed=77), data, CTR, HOW, tmp_path / "run", resume=True))


@pytest.mark.parametrize("at", [3, 7, 17, 30])
def test_a_crash_is_taken_up_from_the_last_checkpoint(data: Dataset, tmp_path: Path, at: int) -> None:
    """In the first epoch, the second, the first after the closed form, and the one after that."""

    class CrashError(Exception):
        pass

    def crash() -> None:
        raise CrashError

    straight = fit(small(data, Steps), data, CTR, HOW)
    Steps.trap, Steps.at = crash, at
    with pytest.raises(CrashError):
        fit(small(data, Steps), data, CTR, HOW, tmp_path / "run")
    assert_same(straight, fit(small(data, Steps), data, CTR, HOW, tmp_path / "run", resume=True))


@pytest.mark.parametrize("when", ["solving", "validating"])
def test_ctrl_c_in_a_closed_form(data: Dataset, tmp_path: Path, when: str) -> None:
    straight = fit(small(data, Steps), data, CTR, HOW)
    stopped: list[bool] = []

    class Stopped(Steps):
        def _shift(self, dataset: Dataset, domains: tuple[int, ...]) -> None:
            super()._shift(dataset, domains)
            if when == "solving" and not stopped:
                stopped.append(True)
                signal.raise_signal(signal.SIGINT)

        def forward(self, batch: Batch) -> Output:
            if when == "validating" and not stopped and self.shift > 0:
                stopped.append(True)
                signal.raise_signal(signal.SIGINT)
            return super().forward(batch)

    with pytest.raises(KeyboardInterrupt):
        fit(small(data, Stopped), data, CTR, HOW, tmp_path / "run")
    assert_same(straight, fit(small(data, Stopped, seed=4), data, CTR, HOW, tmp_path / "run", resume=True))


def test_ctrl_c_says_how_to_go_on_and_leaves_a_loadable_checkpoint(
    data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = math.ceil(len(data.part("train")) / HOW.batch_size)
    interrupted(Small, data, HOW, tmp_path / "run", steps + 2)
    said = capsys.readouterr().err
    assert "epoch 2, step 2" in said
    assert "resume=True" in said
    assert str(tmp_path / "run") in said
    found = Checkpoint.latest(tmp_path / "run")
    assert found is not None
    assert (found.state["epoch"], found.state["step"]) == (1, 2)
    back = load_run(tmp_path / "run", small(data))
    assert back.best.epoch == 0
    assert len(back.log) == 1


def test_ctrl_c_before_the_first_epoch_ends_has_no_weights_yet(data: Dataset, tmp_path: Path) -> None:
    interrupted(Small, data, HOW, tmp_path / "run", 2)
    with pytest.raises(CheckpointError, match="no weights yet"):
        load_run(tmp_path / "run", small(data))


def test_ctrl_c_while_validating(data: Dataset, tmp_path: Path) -> None:
    class Judged(Small):
        """Ctrl-C at its first validation batch."""

        armed: ClassVar[bool] = True

        def forward(self, batch: Batch) -> Output:
            if not self.training and self.armed:
                type(self).armed = False
                signal.raise_signal(signal.SIGINT)
            return super().forward(batch)

    straight = fit(small(data), data, CTR, HOW)
    with pytest.raises(KeyboardInterrupt):
        fit(small(data, Judged), data, CTR, HOW, tmp_path / "run")
    assert_same(straight, fit(small(data, Judged), data, CTR, HOW, tmp_path / "run", resume=True))


def test_resume_from_the_folder_alone(data: Dataset, tmp_path: Path) -> None:
    straight = fit(build("dnn", data.schema, {"dim": 4}), data, CTR, HOW)
    fit(build("dnn", data.schema, {"dim": 4}), data, CTR, HOW, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()  # as if killed before the first checkpoint
    assert_same(straight, resume(tmp_path / "run", data))


def test_the_best_weights_are_the_checkpoints_own(data: Dataset, tmp_path: Path) -> None:
    """Killed between writing newer best weights and the checkpoint that knows of them."""
    how = How(epochs=5, batch_size=64, lr=0.3, patience=None, threads=1, device="cpu", progress=False)  # overfits at once
    straight = fit(small(data), data, CTR, how)
    assert straight.best.epoch < 3
    steps = math.ceil(len(data.part("train")) / how.batch_size)
    interrupted(Small, data, how, tmp_path / "run", 4 * steps + 2, seed=0)
    save_weights(small(data, seed=3), tmp_path / "run" / "model.safetensors")
    assert_same(straight, fit(small(data), data, CTR, how, tmp_path / "run", resume=True))


def test_a_finished_run_is_only_read(data: Dataset, tmp_path: Path) -> None:
    run = fit(small(data), data, CTR, HOW, tmp_path / "run")
    Small.trap, Small.at = pytest.fail, 1
    again = fit(small(data, seed=4), data, CTR, HOW, tmp_path / "run", resume=True)
    assert_same(run, again)


KILLED = """
import os, signal, sys
sys.path.insert(0, {here!r})
from pathlib import Path
import test_fit as t
data = t.Dataset.load(Path({data!r}))
t.Small.trap, t.Small.at = (lambda: os.kill(os.getpid(), signal.SIGKILL)), {at}
t.fit(t.small(data), data, t.CTR, t.How(**{{**t.HOW.__dict__, "checkpoint_minutes": 1e-9}}), Path({out!r}), resume=True)
"""


def test_a_killed_process_is_taken_up(data: Dataset, tmp_path: Path) -> None:
    straight = fit(small(data), data, CTR, HOW)
    out = tmp_path / "run"
    script = KILLED.format(here=str(Path(__file__).parent), data=str(data.path), out=str(out), at=14)
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == -signal.SIGKILL, done.stderr
    found = Checkpoint.latest(out)
    assert found is not None
    assert found.state["step"] > 0  # in mid-epoch
    half = out / ".checkpoint-000099.k1lled0z"  # as if killed while writing
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert_same(straight, fit(small(data, seed=5), data, CTR, HOW, out, resume=True))
    assert files(out) == ["log.jsonl", "model.safetensors", "result.json", "run.json"]


FULL = """
import resource, signal, sys
sys.path.insert(0, {here!r})
from pathlib import Path
import test_fit as t
from isthmus.errors import StorageError
data = t.Dataset.load(Path({data!r}))
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
t.Small.trap, t.Small.at = (lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, resource.RLIM_INFINITY))), 14
try:
    t.fit(t.small(data), data, t.CTR, t.How(**{{**t.HOW.__dict__, "checkpoint_minutes": 1e-9}}), Path({out!r}))
except StorageError as error:
    print(error)
"""


def test_a_full_disk_ends_a_run_that_can_be_taken_up(data: Dataset, tmp_path: Path) -> None:
    straight, out = fit(small(data), data, CTR, HOW), tmp_path / "run"
    script = FULL.format(here=str(Path(__file__).parent), data=str(data.path), out=str(out))
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, env=environment)
    assert "the disk is full" in done.stdout, done.stderr
    found = Checkpoint.latest(out)
    assert found is not None
    assert (found.state["epoch"], found.state["step"]) == divmod(13, math.ceil(len(data.part("train")) / HOW.batch_size))
    assert_same(straight, fit(small(data, seed=5), data, CTR, HOW, out, resume=True))


RANDOM = """
import sys
sys.path.insert(0, {here!r})
from pathlib import Path
import test_fit as t
data = t.Dataset.load(Path({data!r}))
print("ready", flush=True)
t.fit(t.small(data), data, t.CTR, t.How(**{{**t.HOW.__dict__, "checkpoint_minutes": 1e-9, "epochs": 30}}), Path({out!r}), resume=True)
"""


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_any_moment_it_ends_the_same(data: Dataset, tmp_path: Path, kills: int) -> None:
    """Every step writes a checkpoint, so that most kills hit one that is being written."""
    how = dataclasses.replace(HOW, epochs=30)
    straight = fit(small(data), data, CTR, how)
    out, rng = tmp_path / "run", np.random.default_rng(0)
    script = RANDOM.format(here=str(Path(__file__).parent), data=str(data.path), out=str(out))
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    reached = (0, 0)
    for _ in range(kills):
        with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, env=environment) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            while not list(out.glob("checkpoint-*")) and process.poll() is None:
                time.sleep(0.001)
            time.sleep(float(rng.random()) * 0.2)
            process.kill()
        found = Checkpoint.latest(out)
        assert found is not None, "30 epochs are not over yet"
        place = (found.state["epoch"], found.state["step"])
        assert place >= reached, "nothing that was written is lost"
        reached = place
    assert_same(straight, fit(small(data, seed=5), data, CTR, how, out, resume=True))
    assert files(out) == ["log.jsonl", "model.safetensors", "result.json", "run.json"]


# Refusals


def test_a_folder_with_a_run_is_not_overwritten(data: Dataset, tmp_path: Path) -> None:
    fit(small(data), data, CTR, HOW, tmp_path / "run")
    with pytest.raises(StorageError, match="resume=True"):
        fit(small(data), data, CTR, HOW, tmp_path / "run")


def test_a_run_of_another_schema_is_not_resumed(data: Dataset, tmp_path: Path) -> None:
    interrupted(Small, data, HOW, tmp_path / "run", 3)
    other = make_data(tmp_path / "other", seed=8)
    assert other.schema != data.schema
    with pytest.raises(CheckpointError, match="another schema"):
        fit(small(other), other, CTR, HOW, tmp_path / "run", resume=True)


def test_a_run_with_other_settings_is_not_resumed(data: Dataset, tmp_path: Path) -> None:
    interrupted(Small, data, HOW, tmp_path / "run", 3)
    with pytest.raises(CheckpointError, match=r"began with lr = 0\.01"):
        fit(small(data), data, CTR, How(**{**HOW.__dict__, "lr": 0.5}), tmp_path / "run", resume=True)
    fit(small(data), data, CTR, How(**{**HOW.__dict__, "checkpoint_minutes": 5.0}), tmp_path / "run", resume=True)


def test_a_run_from_before_a_setting_existed_is_resumed(data: Dataset, tmp_path: Path) -> None:
    straight = fit(small(data), data, CTR, HOW)
    interrupted(Small, data, HOW, tmp_path / "run", 5, seed=0)
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    del facts["how"]["schedule"], facts["how"]["stop"]
    (tmp_path / "run" / "run.json").write_text(json.dumps(facts))
    assert_same(straight, fit(small(data, seed=77), data, CTR, HOW, tmp_path / "run", resume=True))
    with pytest.raises(CheckpointError, match="schedule = 'constant'"):
        fit(small(data), data, CTR, dataclasses.replace(HOW, schedule="linear"), tmp_path / "run", resume=True)


def test_a_run_on_another_split_is_not_resumed(data: Dataset, tmp_path: Path) -> None:
    events = make_world(2, users=60, items=40, events=1500).events
    split = global_time(events)
    one = encode(events, split, tmp_path / "one")
    merged = encode(events, split.merged(), tmp_path / "merged")
    interrupted(Small, one, HOW, tmp_path / "run", 3)
    with pytest.raises(CheckpointError):
        fit(small(merged), merged, CTR, HOW, tmp_path / "run", resume=True)


def test_a_truncated_checkpoint_is_refused(data: Dataset, tmp_path: Path) -> None:
    interrupted(Small, data, HOW, tmp_path / "run", 9)
    found = Checkpoint.latest(tmp_path / "run")
    assert found is not None
    path = found.folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        fit(small(data), data, CTR, HOW, tmp_path / "run", resume=True)


def test_damaged_runs_are_refused(data: Dataset, tmp_path: Path) -> None:
    fit(small(data), data, CTR, HOW, tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"run\.json is missing"):
        load_run(tmp_path)
    (tmp_path / "run" / "log.jsonl").write_text('{"epo')
    with pytest.raises(CheckpointError, match="damaged"):
        load_run(tmp_path / "run", small(data))
    path = tmp_path / "run" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(CheckpointError, match="cannot be read"):
        load_run(tmp_path / "run", small(data))


def test_a_loss_that_is_not_a_number_stops(data: Dataset, tmp_path: Path) -> None:
    class Broken(Small):
        def forward(self, batch: Batch) -> Output:
            output = super().forward(batch)
            return Output(output.logit, {"extra": torch.tensor(torch.nan if self.at == 0 else 0.5)}) if self.training else output

    Broken.at = math.ceil(len(data.part("train")) / HOW.batch_size) + 4
    with pytest.raises(FitError, match=r"epoch 2, step 4 .*extra = nan") as caught:
        fit(small(data, Broken), data, CTR, HOW, tmp_path / "run")
    assert "lr" in caught.value.do
    found = Checkpoint.latest(tmp_path / "run")  # the last sound one: the end of the first epoch
    assert found is not None
    assert (found.state["epoch"], found.state["step"]) == (1, 0)
    assert all(torch.isfinite(t).all() for t in load_tensors(found.folder / "model.safetensors").values() if t.is_floating_point())


def test_an_unknown_hyper_parameter_names_the_nearest(data: Dataset) -> None:
    with pytest.raises(ConfigError, match="did you mean 'hidden'"):
        build("dnn", data.schema, {"hiden": (3,)})
    with pytest.raises(ConfigError, match="did you mean 'dnn'"):
        build("dn", data.schema, {})


def test_what_does_not_go_together_is_refused_before_training(data: Dataset, tmp_path: Path) -> None:
    other = make_data(tmp_path / "other", seed=8)
    with pytest.raises(ConfigError, match="schema"):
        fit(small(other), data, CTR, HOW)
    with pytest.raises(ConfigError, match="use task 'ctr'"):
        fit(small(data), data, get_task("rating"), HOW)
    with pytest.raises(ConfigError, match="did you mean 'auc'"):
        fit(small(data), data, CTR, How(monitor="acu"))
    with pytest.raises(ConfigError, match="domain index 2"):
        fit(small(data), data, CTR, How(domains=(2,)))
    with pytest.raises(ConfigError, match="domain index 5"):
        fit(small(data), data, CTR, How(targets=(5,)))
    with pytest.raises(ConfigError, match="retriever"):
        fit(small(data), data, CTR, How(sampler="in_batch"))
    with pytest.raises(ConfigError, match="did you mean 'in_batch'"):
        How(sampler="inbatch")
    with pytest.raises(ConfigError, match="without a folder"):
        fit(small(data), data, CTR, How(tensorboard=True))
    with pytest.raises(ConfigError, match="plain values"):
        fit(build("dnn", data.schema, {"dim": np.int64(3)}), data, CTR, HOW, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_device_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="cuda:1"):
        pick_device("cuda:1")
    assert pick_device("cpu") == torch.device("cpu")


def test_tensorboard_gets_the_log(data: Dataset, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    fit(small(data), data, CTR, How(**{**HOW.__dict__, "tensorboard": True}), tmp_path / "run")
    events = list((tmp_path / "run" / "tensorboard").iterdir())
    assert len(events) == 1
    assert b"auc/domain0" in events[0].read_bytes()


# Clipping


def test_clipping_takes_sparse_and_dense_gradients_together() -> None:
    table, dense, unused = (nn.Parameter(torch.zeros(*shape)) for shape in ((4, 1), (2,), (3,)))
    repeated = torch.sparse_coo_tensor(torch.tensor([[1, 1, 3]]), torch.tensor([[1.0], [2.0], [0.0]]), (4, 1), check_invariants=True)
    table.grad, dense.grad = repeated, torch.tensor([0.0, 4.0])
    assert clip_gradients([table, dense, unused], 1.0) == pytest.approx(5.0)  # row 1 sums to 3: (3, 4)
    assert table.grad.to_dense().flatten().tolist() == pytest.approx([0.0, 0.6, 0.0, 0.0])
    assert dense.grad.tolist() == pytest.approx([0.0, 0.8])
    assert clip_gradients([table, dense], 2.0) == pytest.approx(1.0)
    assert dense.grad.tolist() == pytest.approx([0.0, 0.8])


def test_a_tiny_clip_holds_the_head_still(data: Dataset) -> None:
    class Plain(Small):
        """Trained by a rule in which the size of the gradient counts: the extra loss."""

    free = fit(small(data, Plain), data, CTR, How(epochs=1, batch_size=256, device="cpu"))
    held = fit(small(data, Plain), data, CTR, How(epochs=1, batch_size=256, clip=1e-12, device="cpu"))
    moved = [torch.dist(run.model.state_dict()["out.weight"], small(data, Plain).out.weight) for run in (free, held)]
    assert moved[1] < 0.1 * moved[0]


class OneNumber(Model):
    """Predicts the same for everybody."""

    needs: ClassVar[Needs] = Needs()

    def __init__(self, schema: Schema) -> None:
        super().__init__(schema)
        self.number = nn.Parameter(torch.tensor(3.0))

    def forward(self, batch: Batch) -> Output:
        return Output(self.number.expand(batch.item.shape))


def test_the_absolute_error_moves_predictions_towards_the_median(tmp_path: Path) -> None:
    n = 400
    frame = pl.DataFrame(
        {
            "user": [f"u{i % 50}" for i in range(n)],
            "item": [f"i{i % 20}" for i in range(n)],
            "domain": ["a"] * n,
            "rating": [5.0 if i % 5 else 1.0 for i in range(n)],  # mean 4.2, median 5
            "time": list(range(n)),
        }
    )
    events = read_events(frame, user="user", item="item", domain="domain", label="rating", label_kind="rating", time="time")
    data = encode(events, global_time(events), tmp_path / "data")
    how = dataclasses.replace(HOW, epochs=60, batch_size=64, lr=0.05, schedule="linear", monitor="mae")

    def learnt(weight: float) -> float:
        run = fit(OneNumber(data.schema), data, get_task("rating"), dataclasses.replace(how, absolute_error=weight))
        assert isinstance(run.model, OneNumber)
        return run.model.number.item()

    # The least of .8 (x - 5)^2 + .2 (x - 1)^2 + w (.8 |x - 5| + .2 |x - 1|) is 4.2 + .3 w below 5.
    assert [learnt(w) for w in (0.0, 1.0)] == pytest.approx([4.2, 4.5], abs=0.12)
    assert learnt(10.0) == pytest.approx(5.0, abs=0.12)


@pytest.mark.parametrize(("task", "weight"), [("ctr", 1.0), ("rating", -1.0), ("retrieval", 0.5)])
def test_an_absolute_error_is_for_ratings(task: str, weight: float) -> None:
    with pytest.raises(ConfigError, match="absolute_error"):
        get_task(task).with_absolute_error(weight)
    assert get_task(task).with_absolute_error(0.0) is get_task(task)


def test_an_objective_is_for_tasks_that_rank() -> None:
    task = get_task("next_item")
    assert task.with_objective("softmax") is task
    assert task.with_objective("bce").loss is not task.loss
    with pytest.raises(ConfigError, match="did you mean 'softmax'"):
        task.with_objective("softmx")
    with pytest.raises(ConfigError, match="a task that ranks candidates"):
        get_task("ctr").with_objective("bce")


@pytest.mark.parametrize("sampler", ["in_batch", "drawn", "full"])
def test_bce_wants_negatives_of_each_row_s_own(data: Dataset, sampler: str) -> None:
    model = build("two_tower", data.schema, {"dim": 4}, seed=0)
    how = dataclasses.replace(HOW, objective="bce", sampler=sampler)
    with pytest.raises(ConfigError, match='use sampler "uniform" or "popularity"'):
        fit(model, data, get_task("retrieval"), how)


def test_a_stage_that_learnt_nothing_says_so(data: Dataset) -> None:
    model = build("two_tower", data.schema, {"dim": 4}, seed=0)
    still = dataclasses.replace(HOW, objective="bce", epochs=2, lr=1e-9, table_lr=1e-9)
    with pytest.warns(UserWarning, match=r"ended after 2 epochs at a loss of 1\.38.* alike has 1\.3863"):
        fit(model, data, get_task("retrieval"), still)


def test_bce_learns_what_is_chosen_from_one_negative_each(data: Dataset) -> None:
    model = build("two_tower", data.schema, {"dim": 4}, seed=0)
    run = fit(model, data, get_task("retrieval"), dataclasses.replace(HOW, objective="bce", epochs=3))
    losses = [entry["losses"]["loss"] for entry in run.log]
    assert 0 < losses[-1] < losses[0] < 2 * math.log(2) + 0.1
