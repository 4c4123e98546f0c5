"""One of the processes that tests of several ranks start: trains what it is told to, and writes what became of it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from isthmus.batch import Batch, Needs, Output
from isthmus.data.dataset import Dataset
from isthmus.fit import How, build, fit
from isthmus.layers import table
from isthmus.layers.domain import DomainBatchNorm, DomainLinear
from isthmus.layers.table import Table
from isthmus.model import Model, Stage
from isthmus.schema import Schema
from isthmus.task import get_task


class Mixed(Model):
    """Sparse and dense tables, each domain's own layer and norm, and stages: one for the first domain, one in closed form, one for all."""

    needs = Needs()
    tasks = ("ctr",)
    shift: torch.Tensor

    def __init__(self, schema: Schema, *, norm: bool = False, dropout: float = 0.0) -> None:
        super().__init__(schema)
        self.users, self.items = Table(schema.user.size, 4, sparse=True), Table(schema.item.size, 4, sparse=False)
        self.others = Table(schema.user.size, 2, sparse=True)
        self.layer = DomainLinear(len(schema.domains), 6, 5)
        self.norm = DomainBatchNorm(len(schema.domains), 5) if norm else None
        self.drop, self.out = nn.Dropout(dropout), nn.Linear(5, 1)
        self.register_buffer("shift", torch.zeros(()))

    def forward(self, batch: Batch) -> Output:
        x = torch.cat([self.users(batch.user) * self.items(batch.item[:, 0]), self.others(batch.user)], 1)
        x = self.layer(x, batch.offsets)
        x = x if self.norm is None else self.norm(x, batch.offsets)
        return Output(self.out(self.drop(x.tanh())) + self.shift)

    def stages(self) -> list[Stage]:
        return [Stage("first", domains=(0,)), Stage("shift", solve=self._shift), Stage("all")]

    def _shift(self, dataset: Dataset, domains: tuple[int, ...]) -> None:
        self.shift += 0.1 * len(domains) + int(os.environ.get("RANK", "0"))  # each rank another number, were it not for rank 0


class Uneven(Model):
    """A table for each domain, looked up where a batch has rows of it alone; stages in which tables, or rows of them, stand still."""

    needs = Needs()
    tasks = ("ctr",)

    def __init__(self, schema: Schema) -> None:
        super().__init__(schema)
        self.users = nn.ModuleList(Table(schema.user.size, 3, sparse=True) for _ in schema.domains)
        self.items = Table(schema.item.size, 3, sparse=True)

    def forward(self, batch: Batch) -> Output:
        parts = []
        for own, first, last in zip(self.users, batch.offsets, batch.offsets[1:], strict=False):
            if first < last:
                user = batch.user[first:last]
                x, some = own(user) + 0.1, (user % 3 == 0).nonzero()[:, 0]
                if len(some):  # once more: ranks need not look up equally often
                    x = x.index_add(0, some, own(user[some] // 2))
                parts.append((x[:, None] * (self.items(batch.item[first:last]) + 0.1)).sum(2))
        return Output(torch.cat(parts))

    def stages(self) -> list[Stage]:
        odd = torch.arange(self.items.rows) % 3 == 1
        some = Stage("some rows", list(self.users[1].parameters()), rows={self.items.weight: odd})
        return [Stage("first", list(self.users[0].parameters()), domains=(0,)), some, Stage("all")]


OWN = {"mixed": Mixed, "uneven": Uneven}


def main(data: str, out: str, told: dict[str, Any]) -> None:
    """Trains, and writes a line of JSON.

    Told: ``model``, ``args``, ``task``, ``how``, ``folder``, ``seed``; ``large``: every table is a large one; ``double``: computes in
    float64, so that what differs by rounding differs by next to nothing; ``kill``: this rank kills itself at batch number ``after``.
    """
    rank, dataset = int(os.environ.get("RANK", "0")), Dataset.load(data)
    torch.manual_seed(told.get("seed", 0))
    if told.get("large"):
        table.DENSE_LIMIT = 0
    if told.get("double"):
        torch.set_default_dtype(torch.float64)
    name, args = told["model"], told.get("args", {})
    model = OWN[name](dataset.schema, **args) if name in OWN else build(name, dataset.schema, args)
    held: dict[str, list[int]] = {}  # by table: the rows here and in all, in training
    for name, module in model.named_modules():
        if isinstance(module, Table) and module.sparse:
            rows = len(module.weight)
            module.register_forward_pre_hook(lambda module, _, name=name, rows=rows: held.update({name: [len(module.weight), rows]}))
    for module in model.modules():  # ranks leave out other ids than one process: here none
        if hasattr(module, "id_dropout"):
            module.id_dropout = 0.0
    if told.get("kill") is not None and rank == told["kill"]:
        left = [told["after"]]

        def die(*_: Any) -> None:
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)

        model.register_forward_pre_hook(lambda module, _: die() if module.training else None)
    how = How(progress=False, device="cpu", threads=1, patience=None, **told["how"])
    folder = told.get("folder")
    run = fit(model, dataset, get_task(told["task"]), how, folder, resume=folder is not None)
    state = run.model.state_dict()
    digest = hashlib.sha256(b"".join(value.contiguous().numpy().tobytes() for value in state.values())).hexdigest()
    found: dict[str, Any] = {"bits": digest, "log": run.log, "held": held}
    found["weights"] = {name: value.flatten()[: told.get("values", 50)].tolist() for name, value in state.items()}
    Path(out, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")


def start(data: Dataset, out: Path, ranks: int, told: dict[str, Any]) -> subprocess.Popen[str]:
    """So many of these processes."""
    out.mkdir(parents=True, exist_ok=True)
    own = [__file__, str(data.path), str(out), json.dumps(told)]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *launch, *own], text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment)


def train(data: Dataset, out: Path, ranks: int, **told: Any) -> list[dict[str, Any]]:
    """What each rank says in the end."""
    process = start(data, out, ranks, told)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return [json.loads((out / f"{rank}.json").read_text()) for rank in range(ranks)]


def losses(found: dict[str, Any]) -> np.ndarray:
    """Of each epoch."""
    return np.array([entry["losses"]["total"] for entry in found["log"] if "total" in entry["losses"]])


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
