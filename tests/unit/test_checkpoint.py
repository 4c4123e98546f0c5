"""Weights and optimiser states on disk: bit for bit, whole or not at all."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from isthmus import checkpoint
from isthmus.checkpoint import Checkpoint
from isthmus.errors import CheckpointError, ConfigError
from isthmus.how import How
from isthmus.layers.table import RowwiseAdagrad, Table
from isthmus.progress import Hold, holding


class Net(nn.Module):
    """A sparse table, a tied weight and a buffer of no elements."""

    def __init__(self, rows: int = 50) -> None:
        super().__init__()
        self.table = Table(rows, 3, sparse=True)
        self.linear = nn.Linear(3, 3)
        self.tied = self.linear
        self.register_buffer("nothing", torch.zeros(0))

    def step(self, optimisers: list[torch.optim.Optimizer], seed: int) -> None:
        codes = torch.randint(0, len(self.table.weight), (20,), generator=torch.Generator().manual_seed(seed))
        for optimiser in optimisers:
            optimiser.zero_grad()
        self.tied(self.linear(self.table(codes))).square().sum().backward()
        for optimiser in optimisers:
            optimiser.step()


def optimisers(net: Net, kind: str) -> list[torch.optim.Optimizer]:
    tables = {"adagrad": RowwiseAdagrad, "adam": torch.optim.SparseAdam}[kind]
    return [tables([net.table.weight], lr=0.1), torch.optim.AdamW(net.linear.parameters(), lr=0.01, fused=True)]


@pytest.mark.parametrize("kind", ["adagrad", "adam"])
def test_a_restored_training_goes_on_bit_for_bit(tmp_path: Path, kind: str) -> None:
    torch.manual_seed(1)
    net = Net()
    held = optimisers(net, kind)
    for seed in range(3):
        net.step(held, seed)
    torch.manual_seed(7)
    torch.rand(5)
    checkpoint.save(tmp_path, {"place": [1, 2.5, None]}, net, held, None)
    ahead = torch.rand(4)
    for seed in range(3, 6):
        net.step(held, seed)

    other = Net()
    others = optimisers(other, kind)
    found = Checkpoint.latest(tmp_path)
    assert found is not None
    assert found.state["place"] == [1, 2.5, None]
    assert found.best() is None
    found.restore(other)
    found.restore_optimisers(others)
    assert torch.equal(torch.rand(4), ahead)
    for seed in range(3, 6):
        other.step(others, seed)
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name


def test_shared_memory_is_written_once(tmp_path: Path) -> None:
    net = Net()
    assert [n for n in checkpoint.weights(net) if n.startswith(("linear", "tied"))] == ["linear.weight", "linear.bias"]
    checkpoint.save_weights(net, tmp_path / "w.safetensors")
    other = Net()
    checkpoint.load_weights(other, checkpoint.load_tensors(tmp_path / "w.safetensors"))
    assert torch.equal(other.tied.weight, net.linear.weight)
    assert other.tied.weight is other.linear.weight


def test_the_file_is_the_one_that_safetensors_writes(tmp_path: Path) -> None:
    tensors = {f"{place}.{kind}": torch.arange(7).to(kind) for place, kind in enumerate(checkpoint.NAMES)}
    tensors |= {"none": torch.zeros(0, 3), "one": torch.tensor(2.5), "é": torch.eye(3).t()[1:], "turned": torch.arange(6.0).view(2, 3).t()}
    checkpoint.save_tensors(tensors, tmp_path / "own")
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "theirs")
    assert (tmp_path / "own").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    checkpoint.save_weights(Net(50), tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"table\.weight"):
        checkpoint.load_weights(Net(51), checkpoint.load_tensors(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("left", [0, 5, 100, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, left: int) -> None:
    path = tmp_path / "w.safetensors"
    checkpoint.save_weights(Net(), path)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(CheckpointError, match=r"w\.safetensors"):
        checkpoint.load_tensors(path)


def test_only_whole_checkpoints_are_found_and_the_newest_wins(tmp_path: Path) -> None:
    net = Net()
    assert Checkpoint.latest(tmp_path) is None
    (tmp_path / ".checkpoint-000009.h4lfdone").mkdir()
    (tmp_path / ".checkpoint-000009.h4lfdone" / "state.json").write_text("{}")
    assert Checkpoint.latest(tmp_path) is None
    for place in range(12):  # beyond one digit: the order is by number
        checkpoint.save(tmp_path, {"place": place}, net, [], None)
    found = Checkpoint.latest(tmp_path)
    assert found is not None
    assert found.state["place"] == 11
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-000012"]
    checkpoint.remove(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_killed_removal_leaves_the_newest(tmp_path: Path) -> None:
    net = Net()
    checkpoint.save(tmp_path, {"place": 1}, net, [], None)
    (tmp_path / "checkpoint-000001").rename(tmp_path / "kept")
    checkpoint.save(tmp_path, {"place": 2}, net, [], None)
    (tmp_path / "checkpoint-000001").rename(tmp_path / "checkpoint-000002")
    (tmp_path / "kept").rename(tmp_path / "checkpoint-000001")
    found = Checkpoint.latest(tmp_path)
    assert found is not None
    assert found.state["place"] == 2


def test_damaged_or_foreign_state_is_refused(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, {}, Net(), [], None)
    path = tmp_path / "checkpoint-000001" / "state.json"
    raw = json.loads(path.read_text())
    path.write_text(json.dumps({**raw, "format": 99}))
    with pytest.raises(CheckpointError, match="format 99"):
        Checkpoint.latest(tmp_path)
    path.write_text(path.read_text()[:10])
    with pytest.raises(CheckpointError, match="cannot be read"):
        Checkpoint.latest(tmp_path)


def test_no_pickle_is_written(tmp_path: Path) -> None:
    net = Net()
    held = optimisers(net, "adam")
    net.step(held, 0)
    checkpoint.save_weights(net, tmp_path / "best")
    checkpoint.save(tmp_path, {}, net, held, tmp_path / "best")
    files = sorted(p.name for p in (tmp_path / "checkpoint-000001").iterdir())
    assert files == ["best.safetensors", "model.safetensors", "optimiser.safetensors", "state.json"]


FULL_DISK = """
import resource, signal, sys, torch
from pathlib import Path
from isthmus import checkpoint
from isthmus.errors import StorageError
net = torch.nn.Linear(1000, 1000)
checkpoint.save(Path(sys.argv[1]), {"place": 1}, net, [], None)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    checkpoint.save(Path(sys.argv[1]), {"place": 2}, net, [], None)
except StorageError as error:
    sys.exit(42 if "full" in str(error) else str(error))
"""


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL_DISK, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 42, done.stderr
    found = Checkpoint.latest(tmp_path)
    assert found is not None
    assert found.state["place"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint-000001"]


def interrupts(times: int, held: bool, done: list[str]) -> Hold:
    """Ctrl-C within the block, held or not; what ran is noted."""
    with holding() as hold:
        try:
            with hold if held else nullcontext():
                for _ in range(times):
                    signal.raise_signal(signal.SIGINT)
                done.append("block")
            done.append("after")
        except KeyboardInterrupt:
            done.append("interrupt")
    return hold


def test_hold_puts_ctrl_c_off_until_the_block_ends() -> None:
    done: list[str] = []
    assert not interrupts(1, True, done).forced
    assert done == ["block", "interrupt"]


def test_outside_a_hold_ctrl_c_comes_at_once() -> None:
    done: list[str] = []
    assert not interrupts(1, False, done).forced
    assert done == ["interrupt"]


def test_a_second_ctrl_c_does_not_wait() -> None:
    done: list[str] = []
    assert interrupts(2, True, done).forced
    assert done == ["interrupt"]


def test_the_handler_before_comes_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with holding():
        assert signal.getsignal(signal.SIGINT) != before
    assert signal.getsignal(signal.SIGINT) == before


@pytest.mark.parametrize("wrong", [{"epochs": 0}, {"lr": -1.0}, {"lr": float("nan")}, {"clip": 0.0}, {"device": "cdua"}])
def test_impossible_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        How(**wrong)


def test_an_unknown_setting_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'batch_size'"):
        How.of({"batchsize": 3})
    assert How.of({"domains": [0, 1]}).domains == (0, 1)
