"""The single-domain family for clicks: what each model adds up, on numbers worked out by hand or sums written out."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from isthmus.batch import Batch
from isthmus.layers.fields import Fields, Linear
from isthmus.model import Model
from isthmus.models.autoint import AutoInt
from isthmus.models.dcn import DCN
from isthmus.models.deepfm import DeepFM
from isthmus.models.din import DIN
from isthmus.models.fm import FM
from isthmus.models.lr import LR
from isthmus.models.nfm import NFM
from isthmus.models.wide_deep import WideDeep
from isthmus.models.xdeepfm import XDeepFM
from isthmus.schema import PADDING, Domain, Entity, Field, Schema

LEVEL = torch.tensor([-1.0, 2.0])


@pytest.fixture
def rich() -> Schema:
    """Two domains; users with a category, items with a number; a context field."""
    user = Entity("user", (Field("age", "categorical", 4),), 6, 6)
    item = Entity("item", (Field("price", "numeric"),), 6, 6)
    return Schema(user, item, (Domain("a"), Domain("b")), context=(Field("hour", "categorical", 5),), label="click")


def made(model: type[Model], schema: Schema, **args: Any) -> Any:
    """A model whose fields are filled and whose weights are far from 0, in evaluation."""
    torch.manual_seed(0)
    found = model(schema, id_dropout=0.0, **args)
    with torch.no_grad():
        for weight in found.parameters():
            weight += 0.3 * torch.randn_like(weight)
        for module in found.modules():
            if isinstance(module, Fields):
                module.users.table.weight[PADDING] = module.items.table.weight[PADDING] = 0.0
                module.users.field_rows[:, 0] = torch.tensor([0, 7, 8, 9, 7, 8])
                module.items.numeric[:, 0] = torch.tensor([0.0, 1.0, -1.0, torch.nan, 0.5, 2.0])
        for module in found.modules():
            if hasattr(module, "levels"):
                module.levels.level.copy_(LEVEL)
    return found.eval()


@pytest.fixture
def rows(batch: Batch) -> Batch:
    batch.context = {"hour": torch.tensor([1, 2, 3, 4, 0])}
    return batch


def test_fields_stand_in_order_and_the_row_meets_every_candidate(rich: Schema, rows: Batch) -> None:
    fields = made(FM, rich, dim=3).fields
    found = fields(rows)
    assert found.shape == (5, 2, fields.count, 3)
    assert fields.count == 2 + 1 + 1 + 2 + 2  # user: id, age; domain; hour; history: id, price; item: id, price
    users, items = fields.users(rows.user), fields.items(rows.item)
    for c in range(2):
        torch.testing.assert_close(found[:, c, :2], users)
        torch.testing.assert_close(found[:, c, 2], fields.domain.weight[rows.domain + 1])
        torch.testing.assert_close(found[:, c, 3:4], fields.context(rows.context))
        torch.testing.assert_close(found[1, c, 4:6], fields.items(torch.tensor([3, 4])).mean(0))  # its history
        torch.testing.assert_close(found[2, c, 4:6], torch.zeros(2, 3))  # nobody's
        torch.testing.assert_close(found[:, c, 6:], items[:, c])
    assert Fields(rich, 3, history=False).count == fields.count - 2


def test_lr_by_hand(schema: Schema) -> None:
    model = LR(schema, id_dropout=0.0).eval()
    weights = model.linear.weights
    with torch.no_grad():
        weights.users.table.weight[:, 0] = torch.tensor([0.0, 0, 1, 2, 3, 4])
        weights.items.table.weight[:, 0] = torch.tensor([0.0, 0, 10, 20, 30, 40])
        weights.domain.weight[:, 0] = torch.tensor([0.0, 100, 200])
        model.linear.levels.level.copy_(LEVEL)
    batch = Batch(
        torch.tensor([2, 5]), torch.tensor([[2, 3], [4, 5]]), torch.tensor([0, 1]), (0, 1, 2), history=torch.tensor([[2, 5], [0, 3]])
    )
    # user 1, domain 100, history (10 + 40) / 2, level -1;   user 4, domain 200, history 20, level 2
    torch.testing.assert_close(model(batch).logit, torch.tensor([[135.0, 145.0], [256.0, 266.0]]))


def test_fm_is_the_sum_over_all_pairs(rich: Schema, rows: Batch) -> None:
    model = made(FM, rich, dim=3)
    x = model.fields(rows)
    pairs = sum(((x[:, :, f] * x[:, :, g]).sum(-1) for f, g in itertools.combinations(range(x.shape[2]), 2)), torch.zeros(5, 2))
    torch.testing.assert_close(model(rows).logit, model.linear(rows) + pairs)


def flat(model: Any, rows: Batch) -> Tensor:
    return model.fields(rows).flatten(2)


def _dcn(model: Any, rows: Batch) -> Tensor:
    x = flat(model, rows)
    crossed = model.cross(x.flatten(0, 1)).view_as(x)
    found = torch.cat([crossed, model.mlp(x)], 2) if model.parallel else model.mlp(crossed)
    return model.read(found)[..., 0] + LEVEL[rows.domain][:, None]


def _autoint(model: Any, rows: Batch) -> Tensor:
    x = model.fields(rows)
    seen = torch.stack([model.attention(x[:, c]).flatten(1) for c in range(2)], 1)
    deep = 0.0 if model.mlp is None else model.mlp(x.flatten(2))[..., 0]
    return model.read(seen)[..., 0] + deep + LEVEL[rows.domain][:, None]


def _nfm(model: Any, rows: Batch) -> Tensor:
    x = model.fields(rows)
    pairs = sum((x[:, :, f] * x[:, :, g] for f, g in itertools.combinations(range(x.shape[2]), 2)), torch.zeros(5, 2, x.shape[3]))
    if isinstance(model.norm, nn.BatchNorm1d):
        pairs = (pairs - model.norm.running_mean) / (model.norm.running_var + 1e-5).sqrt() * model.norm.weight + model.norm.bias
    return model.linear(rows) + model.mlp(pairs)[..., 0]


def _xdeepfm(model: Any, rows: Batch) -> Tensor:
    x = model.fields(rows)
    cin = torch.stack([model.cin(x[:, c]) for c in range(2)], 1) @ model.read.weight[0]
    return model.linear(rows) + cin + model.mlp(x.flatten(2))[..., 0]


def _deepfm(model: Any, rows: Batch) -> Tensor:
    x = model.fields(rows)
    pairs = sum(((x[:, :, f] * x[:, :, g]).sum(-1) for f, g in itertools.combinations(range(x.shape[2]), 2)), torch.zeros(5, 2))
    return model.linear(rows) + pairs + model.mlp(x.flatten(2))[..., 0]


def _din(model: Any, rows: Batch) -> Tensor:
    """One candidate and one event after the other."""
    assert rows.history is not None
    logit = torch.zeros(rows.item.shape)
    items = model.fields.items
    for b, c in itertools.product(range(5), range(2)):
        q = items(rows.item[b, c]).flatten()
        interest = torch.zeros_like(q)
        for code in rows.history[b]:
            if code != PADDING:
                e, unit = items(code).flatten(), model.attention
                interest += unit.rest((unit.event(e) + unit.query(q) + unit.both(e * q))[None])[0, 0] * e
        x = torch.cat([model.fields.row(rows)[b].flatten(), q, interest])
        logit[b, c] = LEVEL[rows.domain[b]] + model.mlp(x[None])[0, 0]
    return logit


WRITTEN_OUT: list[tuple[type[Model], dict[str, Any], Callable[[Any, Batch], Tensor]]] = [
    (NFM, {}, _nfm),
    (NFM, {"norm": False}, _nfm),
    (WideDeep, {}, lambda model, rows: model.linear(rows) + model.mlp(flat(model, rows))[..., 0]),
    (DeepFM, {}, _deepfm),
    (XDeepFM, {"cin": (3, 2)}, _xdeepfm),
    (DCN, {}, _dcn),
    (DCN, {"parallel": True, "rank": 2, "layers": 2}, _dcn),
    (AutoInt, {}, _autoint),
    (AutoInt, {"layers": 1, "heads": 1, "width": 4, "hidden": ()}, _autoint),
    (DIN, {}, _din),
]


@pytest.mark.parametrize(("model", "args", "expected"), WRITTEN_OUT, ids=lambda value: getattr(value, "__name__", str(value)))
def test_what_is_added_up(model: type[Model], args: dict[str, Any], expected: Callable, rich: Schema, rows: Batch) -> None:
    found = made(model, rich, dim=3, **args)
    with torch.no_grad():
        torch.testing.assert_close(found(rows).logit, expected(found, rows), rtol=1e-4, atol=1e-4)


def test_the_linear_part_is_an_lr(rich: Schema, rows: Batch) -> None:
    model = made(LR, rich)
    assert isinstance(model.linear, Linear)
    x = model.linear.weights(rows)[..., 0].sum(2)
    torch.testing.assert_close(model(rows).logit, x + LEVEL[rows.domain][:, None])
