"""Tables that several processes split among them: what they learn is what one process learns, whoever goes on with it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranked import losses, start, train
from torch import Tensor, nn

from isthmus import checkpoint
from isthmus.checkpoint import Checkpoint
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.split import global_time
from isthmus.data.synthetic import make_world
from isthmus.errors import ConfigError, FitError
from isthmus.fit import How, clip_gradients
from isthmus.layers.table import Table, optimisers
from isthmus.ranks import Ranks
from isthmus.shards import Shards

HOW = {"epochs": 2, "batch_size": 40, "lr": 1e-2, "table_lr": 1e-2}
EXACT = {"large": True, "double": True, "values": 10_000}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    events = make_world(3, users=60, items=40, events=900, seed=0).events
    return encode(events, global_time(events), tmp_path_factory.mktemp("shards") / "data")


@pytest.fixture
def one() -> Iterator[Ranks]:
    """A group of one process: everything travels as among many, to itself."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield Ranks()
    dist.destroy_process_group()


class Net(nn.Module):
    """Looks the same table up in several ways, and another one now and then."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.table, self.other = Table(50, 3, std=1.0, sparse=True), Table(20, 4, std=1.0, sparse=True)
        self.small = Table(20, 4)

    def forward(self, codes: Tensor) -> Tensor:
        mean, total = self.table.bag(codes), self.table.bag(codes.flatten(), torch.tensor([0, 3, 3]), mode="sum")
        loss = self.table(codes).square().sum() + (mean**3).sum() + total.cos().sum() + self.small(codes % 20).square().sum()
        return loss + self.other(codes % 20).sin().sum() if codes.sum() % 2 else loss


def step(net: Net, held: list[Any], codes: Tensor, shards: Shards | None, clip: float | None) -> Tensor:
    for optimiser in held:
        optimiser.zero_grad()
    with nullcontext() if shards is None else shards.open():
        loss = net(codes)
    loss.backward()
    if shards is not None:
        shards.exchange()
    if clip is not None:
        clip_gradients(net.parameters(), clip, Shards() if shards is None else shards)
    for optimiser in held:
        optimiser.step()
    return loss.detach()


@pytest.mark.parametrize(("kind", "clip"), [("adagrad", None), ("adagrad", 0.5), ("adam", None)])
def test_a_split_table_learns_what_a_whole_one_does(one: Ranks, kind: str, clip: float | None) -> None:
    whole, split = Net(), Net()
    before = whole.table.weight.clone()
    shards = Shards.split(split, one)
    assert len(shards) == 2
    assert split.table.weight in shards
    assert split.small.weight not in shards
    usual, apart = (optimisers(net, 1e-2, table_optimiser=kind)[0] for net in (whole, split))
    for number in range(8):
        codes = torch.randint(0, 50, (6, 4), generator=torch.Generator().manual_seed(number))
        codes[0], codes[1, :2] = 0, 0
        expected, found = step(whole, usual, codes, None, clip), step(split, apart, codes, shards, clip)
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=0)
    shards.unite(split)
    assert not torch.equal(whole.table.weight, before)
    for name, value in whole.named_parameters():
        torch.testing.assert_close(split.get_parameter(name), value, rtol=1e-5, atol=1e-6, msg=name)
    assert torch.equal(split.table.weight[0], torch.zeros(3))
    torch.testing.assert_close(split(codes), whole(codes))  # no other rank is needed any more


def test_frozen_tables_get_no_gradient_and_nor_do_those_that_nobody_looked_up(one: Ranks) -> None:
    net = Net()
    shards = Shards.split(net, one)
    net.table.weight.requires_grad_(False)
    with shards.open():
        net(torch.tensor([[1, 2, 3, 4]])).backward()
    shards.exchange()
    assert (net.table.weight.grad, net.other.weight.grad) == (None, None)
    with shards.open(), torch.no_grad():
        net(torch.tensor([[1, 2, 3, 5]]))
    shards.exchange()
    assert net.other.weight.grad is None
    with shards.open():
        net(torch.tensor([[1, 2, 3, 5]])).backward()
    shards.exchange()
    assert net.other.weight.grad is not None
    assert net.other.weight.grad.indices().tolist() == [[1, 2, 3, 5]]


def test_a_look_up_that_nobody_answers_is_refused(one: Ranks) -> None:
    net = Net()
    shards = Shards.split(net, one)
    with pytest.raises(FitError, match="load_run"):
        net.table(torch.tensor([3]))
    with pytest.raises(ZeroDivisionError), shards.open():
        raise ZeroDivisionError
    with pytest.raises(FitError, match=r"50 of 50 rows"):  # nor after something went wrong
        net.table(torch.tensor([3]))


@pytest.mark.parametrize("kind", ["adagrad", "adam"])
def test_files_hold_whole_tables_and_are_written_block_by_block(
    one: Ranks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("isthmus.shards.BLOCK", 160)
    whole, split = Net(), Net()
    shards, codes = Shards.split(split, one), torch.arange(24).view(6, 4)
    held = [optimisers(net, 1e-2, table_optimiser=kind)[0] for net in (whole, split)]
    asked: list[int] = []
    monkeypatch.setattr(shards, "_ask", lambda number, rows: (asked.append(len(rows)), Shards._ask(shards, number, rows))[1])
    for net, own, apart in zip((whole, split), held, (None, shards), strict=True):
        step(net, own, codes, apart, None)
        (tmp_path / str(apart is None)).mkdir()
        asked.clear()
        with shards.open(own):
            checkpoint.save(tmp_path / str(apart is None), {}, net, own, None, apart or Shards())
    assert set(asked) == {10}
    files = [Checkpoint.latest(tmp_path / name).folder for name in ("True", "False")]  # type: ignore[union-attr]
    for name in ("model", "optimiser"):
        expected, found = (checkpoint.load_tensors(file / f"{name}.safetensors") for file in files)
        assert {key: value.shape for key, value in found.items()} == {key: value.shape for key, value in expected.items()}
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=1e-6, atol=1e-7, msg=key)


def test_sharded_is_for_optimisers_of_touched_rows() -> None:
    with pytest.raises(ConfigError, match="adagrad"):
        How(sharded=True, table_optimiser="dense")


# Two processes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "task", "args", "how", "whole"),
    [
        ("mmoe", "ctr", {}, {}, 1),
        ("mmoe", "ctr", {}, {"clip": 0.1, "table_optimiser": "adam", "table_lr": 1e-3}, 1),
        ("uneven", "ctr", {}, {"batch_size": 6, "epochs": 1}, 1),
        ("din", "ctr", {}, {}, 2),  # its norms look at a rank's part of a batch: it is compared with as many ranks
        ("two_tower", "next_item", {"bias": True}, {"sampler": "mixed", "negatives": 8, "epochs": 4}, 1),
        ("sasrec", "next_item", {"dropout": 0.0, "dim": 8}, {"clip": 0.5, "batch_size": 20, "epochs": 4}, 1),
    ],
)
def test_two_ranks_learn_what_whole_tables_learn(
    data: Dataset, tmp_path: Path, model: str, task: str, args: Any, how: Any, whole: int
) -> None:
    told = {**EXACT, "model": model, "task": task, "args": args, "how": {**HOW, **how}}
    expected = train(data, tmp_path / "whole", whole, **told)[0]
    found = train(data, tmp_path / "split", 2, **{**told, "how": {**told["how"], "sharded": True}})
    for rank, one in enumerate(found):
        assert one["held"]
        assert all(here == (rows + 1 - rank) // 2 for here, rows in one["held"].values()), "each rank holds half of each table"
        assert one["bits"] == found[0]["bits"], "what comes back is whole, and the same on both ranks"
    np.testing.assert_allclose(losses(found[0]), losses(expected), rtol=1e-6)
    for before, after in zip(expected["log"], found[0]["log"], strict=True):
        assert before["metrics"].keys() == after["metrics"].keys()
        for name, values in before["metrics"].items():
            assert after["metrics"][name] == pytest.approx(values, abs=1e-6), "rank 0 validates with rows of both"
    for name, values in expected["weights"].items():
        np.testing.assert_allclose(found[0]["weights"][name], values, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_two_trainings_give_the_same_bits(data: Dataset, tmp_path: Path) -> None:
    told = {"large": True, "model": "mmoe", "task": "ctr", "args": {"dropout": 0.2}, "how": {**HOW, "sharded": True}}
    first, second = (train(data, tmp_path / name, 2, **told) for name in ("a", "b"))
    assert first[0]["bits"] == second[0]["bits"]


@pytest.mark.slow
@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2), (2, 3)])
@pytest.mark.parametrize("kind", ["adagrad", "adam"])
def test_any_number_of_ranks_goes_on_with_what_others_began(data: Dataset, tmp_path: Path, first: int, then: int, kind: str) -> None:
    how = {**HOW, "table_lr": 1e-3, "table_optimiser": kind, "checkpoint_minutes": 1e-9}
    told = {**EXACT, "model": "mixed", "task": "ctr", "how": {**how, "sharded": True}}
    (straight,) = train(data, tmp_path / "straight", 1, **{**told, "how": how})
    folder = str(tmp_path / "run")
    died = start(data, tmp_path, first, {**told, "folder": folder, "kill": first - 1, "after": 7})
    said, _ = died.communicate(timeout=200)
    assert died.returncode != 0, said
    assert list(Path(folder).glob("checkpoint-*")), said
    found = train(data, tmp_path / "again", then, **told, folder=folder, seed=77)
    np.testing.assert_allclose(losses(found[0]), losses(straight), rtol=1e-6)
    for name, values in straight["weights"].items():
        np.testing.assert_allclose(found[0]["weights"][name], values, rtol=1e-6, atol=1e-6, err_msg=name)


@pytest.mark.slow
def test_every_model_learns_from_split_tables_what_it_learns_from_whole_ones(data: Dataset, tmp_path: Path) -> None:
    script, out = Path(__file__).parent / "ranked_models.py", tmp_path / "found.json"
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script), str(data.path), str(out)]
    done = subprocess.run(launch, capture_output=True, text=True, check=False, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=900)
    assert done.returncode == 0, done.stderr
    found = json.loads(out.read_text())
    assert len(found) > 30
    assert {name: apart for name, apart in found.items() if not apart < (2e-3 if name == "sli_rec" else 1e-6)} == {}
