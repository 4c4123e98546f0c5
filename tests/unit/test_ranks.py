"""Several processes train as one: the same losses, the same weights on every rank, and nothing lost when one of them dies."""

from __future__ import annotations

import math
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranked import losses, start, train

from command import isthmus
from isthmus.batch import Batch, Needs
from isthmus.data.batches import batches
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.events import Events
from isthmus.data.order import Plan
from isthmus.data.split import global_time
from isthmus.data.synthetic import make_world
from isthmus.data.windows import WindowBatches
from isthmus.errors import FitError
from isthmus.ranks import Ranks

HOW = {"epochs": 2, "batch_size": 100, "lr": 1e-2}
NEEDS = Needs(history=True, cross_history=True, context=True)


def events() -> Events:
    return make_world(3, users=60, items=40, events=900, seed=0).events


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    found = events()
    return encode(found, global_time(found), tmp_path_factory.mktemp("ranks") / "data")


# What each rank gets


@pytest.mark.parametrize("plan", [Plan(batch_size=70, negatives=3), Plan(batch_size=70, sampler="mixed", negatives=5), Plan(batch_size=7)])
@pytest.mark.parametrize("ranks", [2, 3])
def test_the_ranks_rows_are_the_whole_batch(data: Dataset, plan: Plan, ranks: int) -> None:
    whole = list(batches(data, "train", NEEDS, plan))
    parts = [list(batches(data, "train", NEEDS, Plan(**{**plan.__dict__, "rank": r, "ranks": ranks}))) for r in range(ranks)]
    for step, batch in enumerate(whole):
        own = [part[step] for part in parts]
        together(batch, own, len(batch) < ranks)
        for name in ("user", "item", "domain", "history", "cross_domain", "label"):
            for r, part in enumerate(own):
                expected = getattr(batch, name)
                assert torch.equal(getattr(part, name), expected if len(batch) < ranks else expected[r::ranks]), name
        for part in own:
            assert part.offsets == tuple(torch.searchsorted(part.domain, torch.arange(4)).tolist())
            if batch.pool is not None:
                assert part.pool is not None
                assert torch.equal(part.pool.item, batch.pool.item)
                assert torch.equal(part.pool.item[part.pool.own], part.item[:, 0])


def together(batch: Batch, parts: list[Batch], copied: bool) -> None:
    """The parts weigh as much as the whole."""
    assert sum(part.share for part in parts) == pytest.approx(1.0)
    assert {len(part) for part in parts} <= ({len(batch)} if copied else {len(batch) // len(parts), -(-len(batch) // len(parts))})


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("sampler", ["drawn", "in_batch", "uniform"])
def test_the_ranks_windows_ask_what_the_whole_batch_asks(data: Dataset, merged: bool, sampler: str) -> None:
    plan = Plan(batch_size=90, sampler=sampler, negatives=4, history_length=6)
    needs = Needs(merged_history=True) if merged else Needs(history=True)
    whole, parts = (
        WindowBatches(data, needs, plan),
        [WindowBatches(data, needs, Plan(**{**plan.__dict__, "rank": r, "ranks": 2})) for r in (0, 1)],
    )
    for step in range(min(whole.steps, 9)):
        expected, found = asked(whole.batch(0, step), merged), [part.batch(0, step) for part in parts]
        assert sorted(expected) == sorted(asked(found[0], merged) + asked(found[1], merged))
        assert sum(part.share for part in found) == pytest.approx(1.0)
        for part in found:
            assert part.target is not None
            assert part.target.offsets == tuple(torch.searchsorted(part.target.domain, torch.arange(4)).tolist())


def asked(batch: Batch, merged: bool) -> list[tuple[Any, ...]]:
    """Each target: the user, what she had done, what came next, and what it is told apart from."""
    target, history = batch.target, batch.merged_history if merged else batch.history
    assert target is not None
    assert history is not None
    row, slot = np.divmod(target.slot.numpy(), history.shape[1])
    out = []
    for n in range(len(row)):
        past = tuple(i for i in history[row[n], : slot[n] + 1].tolist() if i)
        negative = () if target.negative is None else tuple(target.negative[n].tolist())
        own = () if batch.pool is None or batch.pool.own is None else (int(batch.pool.own[n]), int(batch.pool.item[batch.pool.own[n]]))
        out.append((int(batch.user[row[n]]), int(target.domain[n]), past, int(target.item[n]), negative, own))
    return out


@settings(deadline=None, max_examples=60)
@given(rows=st.integers(1, 40), ranks=st.integers(1, 6))
def test_every_row_counts_once(rows: int, ranks: int) -> None:
    taken = np.zeros(rows)
    for rank in range(ranks):
        own, factor = Plan(rank=rank, ranks=ranks).own(rows)
        taken[own] += factor
        assert len(taken[own]) > 0
    np.testing.assert_allclose(taken, 1.0)


# What they make of it


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "task", "args", "how"),
    [
        ("mixed", "ctr", {}, {}),
        ("two_tower", "next_item", {}, {"sampler": "mixed", "negatives": 8, "lr": 1e-3, "epochs": 1}),
        ("sasrec", "next_item", {"dropout": 0.0}, {"clip": 0.5}),
    ],
)
def test_losses_and_weights_are_those_of_one_process(data: Dataset, tmp_path: Path, model: str, task: str, args: Any, how: Any) -> None:
    told = {"model": model, "task": task, "args": args, "how": {**HOW, **how}, "double": True}  # Adam makes rounding large
    (alone,) = train(data, tmp_path / "1", 1, **told)
    for ranks in (2, 3) if model == "mixed" else (2,):
        found = train(data, tmp_path / str(ranks), ranks, **told)
        assert len({one["bits"] for one in found}) == 1, "the same weights on every rank, bit for bit"
        assert all(one["log"][0]["metrics"] == found[0]["log"][0]["metrics"] for one in found)
        np.testing.assert_allclose(losses(found[0]), losses(alone), rtol=1e-6)
        for name, values in alone["weights"].items():
            np.testing.assert_allclose(found[0]["weights"][name], values, rtol=1e-6, atol=1e-6, err_msg=name)  # labels are float32


@pytest.mark.slow
def test_norms_move_alike_and_dropout_does_not(data: Dataset, tmp_path: Path) -> None:
    told = {"model": "mixed", "task": "ctr", "args": {"norm": True, "dropout": 0.5}, "how": HOW}
    found = train(data, tmp_path, 2, **told)
    assert found[0]["bits"] == found[1]["bits"]
    assert any(value != 0 for value in found[0]["weights"]["norm.running_mean"])


@pytest.mark.slow
@pytest.mark.parametrize("again", [2, 1, 3])
def test_it_goes_on_after_a_rank_died_with_any_number_of_ranks(data: Dataset, tmp_path: Path, again: int) -> None:
    told = {"model": "mixed", "task": "ctr", "args": {"dropout": 0.3}, "how": {**HOW, "checkpoint_minutes": 1e-9}}
    straight = train(data, tmp_path / "straight", 2, **told)
    folder = str(tmp_path / "run")
    died = start(data, tmp_path, 2, {**told, "folder": folder, "kill": 1, "after": 7})
    said, _ = died.communicate(timeout=200)  # the other rank ends too, instead of waiting for hours
    assert died.returncode != 0, said
    assert list(Path(folder).glob("checkpoint-*"))
    found = train(data, tmp_path / "again", again, **told, folder=folder, seed=77)
    assert len({one["bits"] for one in found}) == 1
    assert (found[0]["bits"] == straight[0]["bits"]) == (again == 2), "other ranks drop out other activations"
    assert len(found[0]["log"]) == len(straight[0]["log"])
    assert math.isfinite(losses(found[0])[-1])


@pytest.mark.slow
def test_what_is_wrong_on_rank_0_ends_all(data: Dataset, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    told = {"model": "mixed", "task": "ctr", "how": HOW, "folder": str(folder)}
    train(data, tmp_path, 1, **told)
    process = start(data, tmp_path, 2, {**told, "how": {**HOW, "lr": 0.5}})
    said, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "rank 0 failed" in said
    assert "began with lr = 0.01" in said


def test_one_process_alone_is_rank_0_of_1(monkeypatch: pytest.MonkeyPatch) -> None:
    ranks = Ranks.join(torch.device("cpu"))
    assert (ranks.rank, ranks.size, ranks.first) == (0, 1, True)
    weight = torch.nn.Parameter(torch.ones(3))
    assert ranks.exchange(torch.nn.ParameterList([weight]), asked=True)
    assert weight.grad is None
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(FitError, match=r"(?s)WORLD_SIZE = 2.*torchrun"):
        Ranks.join(torch.device("cpu"))


@pytest.mark.slow
def test_the_command_starts_its_own_processes(data: Dataset, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "isthmus.cli",
        "fit",
        str(data.path),
        "-m",
        "dnn",
        "-o",
        str(tmp_path / "run"),
        "--epochs",
        "1",
        "--ddp",
        "2",
    ]
    first = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert (first.returncode, first.stdout.count("kept epoch 1")) == (0, 1), first.stderr
    second = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert second.returncode == 1
    assert second.stderr.count("holds a run already") == 1
    assert "Traceback" not in second.stderr


def test_other_commands_are_not_for_several_processes() -> None:
    assert "isthmus models on 2 processes of torchrun" in isthmus("models", ok=2, environment={"WORLD_SIZE": "2"})


LEAVING = """
import atexit, os, torch
from isthmus.ranks import Ranks

def left():  # called last: after the group has been left
    names = [open(f"/proc/self/task/{task}/comm").read().strip() for task in os.listdir("/proc/self/task")]
    print([name for name in names if "gloo" in name])

atexit.register(left)
ranks = Ranks.join(torch.device("cpu"))
weight = torch.nn.Parameter(torch.ones(3))
weight.sum().backward()
torch.optim.AdamW([weight]).step()
print(ranks.sum(torch.ones(1)).item())
"""


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")
def test_no_thread_of_the_group_outlives_it() -> None:
    """One that lets go of a tensor while Python ends would abort the process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2"}
    started = [
        subprocess.Popen([sys.executable, "-c", LEAVING], text=True, stdout=subprocess.PIPE, env={**os.environ, **place, "RANK": str(rank)})
        for rank in range(2)
    ]
    assert [process.communicate(timeout=120)[0].split("\n")[:2] for process in started] == [["2.0", "[]"]] * 2
    assert [process.returncode for process in started] == [0, 0]
