"""A stage trains what it names, to the row; everything else is the same bit for bit afterwards."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

import polars as pl
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isthmus.batch import Batch, Needs, Output
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.split import global_time
from isthmus.data.synthetic import make_world
from isthmus.errors import ConfigError
from isthmus.fit import fit
from isthmus.how import How
from isthmus.layers.domain import DomainBatchNorm, DomainLinear
from isthmus.layers.features import EntityFields
from isthmus.layers.table import Table
from isthmus.measure import measure
from isthmus.model import Model, Stage, evaluating
from isthmus.schema import Schema
from isthmus.score import score
from isthmus.stages import drop_other_rows, only, training
from isthmus.task import get_task


class Parts(Model):
    """A sparse and a dense table, norms of all rows and of each domain, a layer per domain, dropout."""

    needs: ClassVar[Needs] = Needs()

    def __init__(self, schema: Schema) -> None:
        super().__init__(schema)
        self.users = Table(schema.user.size, 4, sparse=True)
        self.items = EntityFields(schema.item, 4)
        self.items.table.sparse = True
        self.domain = Table(len(schema.domains) + 1, 4)
        self.shared = nn.Sequential(nn.Linear(12, 8), nn.BatchNorm1d(8, affine=False), nn.ReLU(), nn.BatchNorm1d(8))
        self.norm = DomainBatchNorm(len(schema.domains), 8)
        self.drop = nn.Dropout(0.2)
        self.out = DomainLinear(len(schema.domains), 8, 1)

    def forward(self, batch: Batch) -> Output:
        row = torch.cat([self.users(batch.user), self.items(batch.item[:, 0]).sum(-2), self.domain(batch.domain + 1)], 1)
        return Output(self.out(self.drop(self.norm(self.shared(row), batch.offsets)), batch.offsets))

    def stages(self) -> list[Stage]:
        """The second domain's parts, and some items."""
        return [Stage("some", weights=(), domains=(1,), rows=self.rows())]

    def rows(self) -> dict[nn.Parameter, Tensor]:
        items = torch.zeros(len(self.items.table.weight), dtype=torch.bool)
        items[5:20] = True
        second = torch.tensor([False, True])
        assert self.out.bias is not None
        assert self.norm.weight is not None
        rows: dict[nn.Parameter, Tensor] = {self.items.table.weight: items, self.domain.weight: torch.tensor([False, False, True])}
        return rows | {self.out.weight: second, self.out.bias: second, self.norm.weight: second}


TRAINED = {"items.table.weight", "domain.weight", "out.weight", "out.bias", "norm.weight"}
MOVING = {"norm.running_mean", "norm.running_var"}  # by rows: the second domain's


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    events = make_world(2, users=60, items=40, events=1500).events
    return encode(events, global_time(events), tmp_path_factory.mktemp("data") / "clicks")


@pytest.mark.parametrize("clip", [None, 0.5])
@pytest.mark.parametrize("optimiser", ["adagrad", "adam", "dense"])
def test_everything_but_the_rows_named_is_bit_identical(data: Dataset, optimiser: str, clip: float | None) -> None:
    torch.manual_seed(0)
    model = Parts(data.schema)
    with torch.no_grad():
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.sub_(0.25)  # away from where they start, and the ReLU open
    before = {name: value.clone() for name, value in model.state_dict().items()}
    decay = 0.0 if optimiser == "adam" else 0.1
    how = How(epochs=3, batch_size=128, lr=0.05, patience=None, weight_decay=0.1, clip=clip, device="cpu", threads=1, progress=False)
    how = How(**{**how.__dict__, "table_optimiser": optimiser, "table_decay": decay})
    fit(model, data, get_task("ctr"), how)
    rows = {name: mask for name, p in model.named_parameters() for weight, mask in model.rows().items() if p is weight}
    assert rows.keys() == TRAINED
    rows |= dict.fromkeys(MOVING, torch.tensor([False, True]))
    for name, value in model.state_dict().items():
        if name not in rows:
            assert name.startswith("items.") or torch.equal(value, before[name]), name  # the items' own fields came from the data
        else:
            assert torch.equal(value[~rows[name]], before[name][~rows[name]]), name
            assert not torch.equal(value[rows[name]], before[name][rows[name]]), name


def test_norms_of_frozen_weights_keep_their_statistics_and_dropout_goes_on(data: Dataset) -> None:
    model = Parts(data.schema)
    model.eval()
    with only(model, model.stages()[0]):
        training(model)
        modes = {name: module.training for name, module in model.named_modules()}
        assert not modes["shared.1"]  # without weights of its own: by the linear layer beside it
        assert not modes["shared.3"]
        assert modes["norm"]
        assert modes["drop"]
        with evaluating(model):
            assert not any(module.training for module in model.modules())
        assert {name: module.training for name, module in model.named_modules()} == modes
    training(model)
    assert all(module.training for module in model.modules()), "nothing is frozen"


def test_gradients_of_other_rows_are_dropped_by_hand() -> None:
    dense, sparse = (nn.Parameter(torch.zeros(4, 2)) for _ in range(2))
    mask = torch.tensor([False, True, False, True])
    dense.grad = torch.full((4, 2), torch.nan)
    dense.grad[1] = 3.0
    dense.grad[3] = 4.0
    times = torch.tensor([1.0, 9.0, 2.0])
    F.embedding(torch.tensor([1, 2, 1]), sparse, sparse=True).mul(times[:, None]).sum().backward()
    drop_other_rows({dense: mask, sparse: mask, nn.Parameter(torch.zeros(4)): mask})
    assert dense.grad.tolist() == [[0, 0], [3, 3], [0, 0], [4, 4]]
    assert sparse.grad is not None
    assert sparse.grad.is_sparse
    assert sparse.grad.coalesce().indices().tolist() == [[1]]
    assert sparse.grad.to_dense()[1].tolist() == [3, 3]


def test_a_mask_must_fit_its_weight(data: Dataset) -> None:
    model = Parts(data.schema)
    for mask in (torch.ones(3), torch.ones(5, dtype=torch.bool)):
        stage = Stage("odd", rows={model.domain.weight: mask})
        with pytest.raises(ConfigError, match="a mask"), only(model, stage):
            pass


def test_a_stage_may_be_judged_by_known_users_alone(tmp_path: Path) -> None:
    events = make_world(2, users=300, items=40, events=600, seed=3).events
    dataset, task, how = (
        encode(events, global_time(events), tmp_path / "data"),
        get_task("ctr"),
        How(epochs=1, device="cpu", progress=False),
    )
    model = Parts(dataset.schema)
    model.stages = lambda: [Stage("all", known=True)]  # type: ignore[method-assign]
    run = fit(model, dataset, task, how)
    scores = score(run.model, dataset, "valid", task=task, how=how)
    new = pl.col("state") == "new"
    assert 0 < scores.frame.select(new.mean()).item() < 1
    known = measure(dataclasses.replace(scores, frame=scores.frame.filter(~new)), ("auc",), resamples=0)
    expected = known.filter((pl.col("domain") == "all") & (pl.col("state") == "all"))["value"].item()
    assert run.log[0]["metrics"]["auc"]["all"] == pytest.approx(expected)
    everyone = measure(scores, ("auc",), resamples=0).filter((pl.col("domain") == "all") & (pl.col("state") == "all"))["value"].item()
    assert everyone != pytest.approx(expected)
