"""One of the processes that ``test_ranks`` starts: trains what it is told to, and writes what became of it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

from isthmus.batch import Batch, Needs, Output
from isthmus.data.dataset import Dataset
from isthmus.fit import How, build, fit
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


def main(data: str, out: str, told: dict[str, Any]) -> None:
    """Trains, and writes a line of JSON."""
    rank, dataset = int(os.environ.get("RANK", "0")), Dataset.load(data)
    torch.manual_seed(told.get("seed", 0))
    args = told.get("args", {})
    model = Mixed(dataset.schema, **args) if told["model"] == "mixed" else build(told["model"], dataset.schema, args)
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
    found: dict[str, Any] = {"bits": digest, "log": run.log}
    found["weights"] = {name: value.flatten()[:50].tolist() for name, value in state.items()}
    Path(out, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(sys.argv[3]))
