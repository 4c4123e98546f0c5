"""Weights that stay in their file: nothing is copied, nothing is written back, and what was one weight is one."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from isthmus.checkpoint import load_tensors, map_weights, save_weights
from isthmus.errors import CheckpointError
from isthmus.how import How
from isthmus.layers.table import Table, undrawn
from isthmus.run import build, load_run
from isthmus.schema import Domain, Entity, Schema

linux = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="reads Linux' own account of memory")
USERS, DIM = 400_000, 16  # 26 MB


class Tied(nn.Module):
    """A weight under two names, in two modules; and a GRU, which keeps a list of its weights."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out, self.gru = Table(20, 3, sparse=True), nn.Linear(3, 20, bias=False), nn.GRU(3, 3)
        self.out.weight = self.table.weight

    def forward(self, codes: Tensor) -> Tensor:
        return self.out(self.gru(self.table(codes))[0])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose table is large."""
    path = tmp_path_factory.mktemp("run")
    schema = Schema(Entity("user", (), USERS, USERS), Entity("item", (), 100, 100), (Domain("a"), Domain("b")), "click")
    model = build("mmoe", schema, {"dim": DIM, "experts": 2, "hidden": [8], "tower": [4]})
    save_weights(model, path / "model.safetensors")
    facts = {"model": "mmoe", "args": model.args, "schema": schema.to_dict(), "task": "ctr", "how": dataclasses.asdict(How())}
    (path / "run.json").write_text(json.dumps(facts))
    (path / "log.jsonl").write_text("")
    return path


def file_behind(tensor: Tensor) -> str:
    """The file that a tensor's memory is mapped from; empty where there is none."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        begin, end = (int(place, 16) for place in line.split()[0].split("-"))
        if begin <= tensor.data_ptr() < end:
            return line.split(maxsplit=5)[5] if line.count("/") else ""
    return ""


@linux
def test_a_runs_tables_lie_in_their_file(folder: Path) -> None:
    model, weights = load_run(folder).model, str(folder / "model.safetensors")
    assert {file_behind(p) for p in model.parameters()} == {weights}
    assert file_behind(load_run(folder, build("mmoe", model.schema, model.args)).model.inputs.user.table.weight) != weights


def test_what_is_trained_stays_with_the_process(tmp_path: Path) -> None:
    path, net = tmp_path / "w.safetensors", Tied()
    save_weights(Tied(), path)
    before, bits = load_tensors(path)["table.weight"].clone(), path.read_bytes()
    map_weights(net, path)
    assert net.out.weight is net.table.weight
    assert torch.equal(net.table.weight, before)
    net(torch.arange(5)).sum().backward()
    torch.optim.SGD([net.table.weight], lr=1.0).step()
    assert not torch.equal(net.table.weight, before)
    assert path.read_bytes() == bits


def test_a_gru_computes_with_what_was_mapped(tmp_path: Path) -> None:
    one, other = Tied(), Tied()
    save_weights(one, tmp_path / "w.safetensors")
    map_weights(other, tmp_path / "w.safetensors")
    assert torch.equal(one(torch.arange(20)), other(torch.arange(20)))


def test_tables_draw_nothing_where_a_file_gives_their_values() -> None:
    state = torch.get_rng_state()
    with undrawn():
        Table(10, 4)
    assert torch.equal(torch.get_rng_state(), state)
    assert Table(10, 4).weight.std() > 0


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    save_weights(Table(30, 3), tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match=r"size mismatch for weight"):
        map_weights(Table(20, 3), tmp_path / "w.safetensors")


MEMORY = """
import re, sys
from pathlib import Path
import torch

def own():
    return int(re.search(r"RssAnon:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024

def run(folder):
    from isthmus.run import load_run
    model = load_run(folder).model
    return lambda: model.inputs.user(torch.arange(0, USERS, 40))

def graph(folder):
    import numpy as np
    from isthmus.serve.bundle import _session
    session = _session(folder / "0.onnx", 1)
    some = np.arange(0, USERS, 40)
    feed = {"user": some, "item": np.ones((len(some), 1), np.int64), "history": np.ones((len(some), 4), np.int64)}
    return lambda: session.run(None, feed)

USERS, way, folder = int(sys.argv[1]), sys.argv[2], Path(sys.argv[3])
import isthmus.run, onnxruntime
before = own()
with torch.inference_mode():
    model = globals()[way](folder)
    print(own() - before, end=" ")
    model()
print(own() - before)
"""


@linux
@pytest.mark.slow
@pytest.mark.parametrize("way", ["run", "graph"])
def test_loading_and_reading_take_less_memory_than_the_table(folder: Path, way: str) -> None:
    if way == "graph":
        from isthmus.export.graphs import write_graph

        write_graph(load_run(folder).model, 0, folder / "0.onnx", folder / "model.safetensors", length=4)
    done = subprocess.run([sys.executable, "-c", MEMORY, str(USERS), way, str(folder)], capture_output=True, text=True, check=True)
    loaded, read = (int(number) for number in done.stdout.split())
    assert max(loaded, read) < 4 * USERS * DIM, (loaded, read)
