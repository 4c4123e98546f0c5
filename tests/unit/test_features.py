"""Ids to vectors, against tables looked up by hand."""

from __future__ import annotations

import copy
import dataclasses
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from isthmus.batch import Batch
from isthmus.data.batches import take_context
from isthmus.errors import ConfigError
from isthmus.layers.features import ContextFields, EntityFields, Inputs
from isthmus.layers.from_data import fill
from isthmus.layers.networks.dnn import DNNNetwork
from isthmus.layers.table import Table
from isthmus.schema import Domain, Entity, Field, LabelKind, Schema

NAN = float("nan")
ITEM = Entity(
    "item",
    (Field("price", "numeric"), Field("brand", "categorical", 4), Field("tags", "multi", 6), Field("shop", "categorical", 5)),
    trained=5,
    size=8,
)
BRAND, SHOP = [0, 1, 2, 3, 2, 1, 3, 0], [0, 1, 4, 4, 3, 2, 2, 1]
TAGS: list[list[int]] = [[], [], [2, 3], [5], [], [2, 2, 4], [1], [0, 3]]
PRICE = [NAN, NAN, 0.5, -1.0, NAN, 2.0, 0.0, 1.0]
IDS = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]])


def _table(**changes: Any) -> Any:
    """What a data set hands over; read-only, as memory-mapped columns are."""
    table = {
        "categorical": np.array([BRAND, SHOP], np.int32).T,
        "numeric": np.array([PRICE], np.float32).T,
        "multi": {"tags": (np.cumsum([0, *map(len, TAGS)]), np.array([t for ts in TAGS for t in ts], np.int32))},
    } | changes
    table["numeric"].flags.writeable = False
    return SimpleNamespace(**table)


def _fields(sparse: bool = False, id_dropout: float = 0.0) -> EntityFields:
    torch.manual_seed(0)
    layer = EntityFields(ITEM, 3, id_dropout=id_dropout)
    layer.table = Table(len(layer.table.weight), 3, std=1.0, sparse=sparse)
    layer.fill(_table())
    assert layer.numbers is not None
    torch.nn.init.normal_(layer.numbers.missing)
    return layer


def _by_hand(layer: EntityFields, code: int) -> Tensor:
    """id, brand, shop, tags, price of one item; the shared table is laid out as ids, brand, shop, tags."""
    weight, numbers = layer.table.weight, layer.numbers
    assert numbers is not None
    zero = torch.zeros(3)
    if code == 0:
        return torch.zeros(5, 3)
    brand = weight[5 + BRAND[code]] if BRAND[code] else zero
    shop = weight[5 + 4 + SHOP[code]] if SHOP[code] else zero
    tags = [weight[5 + 4 + 5 + tag] for tag in TAGS[code] if tag]
    price = numbers.missing[0] if np.isnan(PRICE[code]) else PRICE[code] * numbers.slope[0]
    return torch.stack([weight[code if code < 5 else 1], brand, shop, sum(tags, zero) / max(len(tags), 1), price])


@pytest.mark.parametrize("sparse", [False, True])
def test_vectors_and_gradients_by_hand(sparse: bool) -> None:
    layer = _fields(sparse)
    found = layer(IDS)
    expected = torch.stack([_by_hand(layer, code) for code in IDS.flatten().tolist()]).view(2, 4, 5, 3)
    torch.testing.assert_close(found, expected)
    up, weights = torch.randn(2, 4, 5, 3), list(layer.parameters())
    first, second = torch.autograd.grad(found, weights, up), torch.autograd.grad(expected, weights, up)
    for a, b in zip(first, second, strict=True):
        torch.testing.assert_close(a.to_dense(), b)
    assert first[0].is_sparse == sparse
    assert not first[0].to_dense()[0].any()  # padding gets nothing


@pytest.mark.parametrize("sparse", [False, True])
def test_mean_is_the_mean_of_what_is_not_padding(sparse: bool) -> None:
    layer = _fields(sparse)
    ids = torch.tensor([[0, 0, 2, 7], [5, 5, 4, 3], [0, 0, 0, 0]])
    found = layer.mean(ids)
    expected = layer(ids).sum(1) / torch.tensor([2, 4, 1])[:, None, None]
    torch.testing.assert_close(found, expected)
    assert not found[2].any()
    up, weights = torch.randn(3, 5, 3), list(layer.parameters())
    for a, b in zip(torch.autograd.grad(found, weights, up), torch.autograd.grad(expected, weights, up), strict=True):
        torch.testing.assert_close(a.to_dense(), b.to_dense())


def test_padding_is_zero_in_every_field_also_in_training() -> None:
    layer = _fields(id_dropout=0.9)
    assert not layer(torch.zeros(50, dtype=torch.int64)).any()
    assert not layer.mean(torch.zeros(5, 50, dtype=torch.int64)).any()


def test_an_id_that_training_never_saw_keeps_its_fields_only() -> None:
    layer = _fields().eval()
    vectors = layer(torch.tensor([1, 5, 6]))
    assert torch.equal(vectors[0, 0], vectors[1, 0])
    assert torch.equal(vectors[0, 0], vectors[2, 0])
    assert not torch.equal(vectors[1, 1], vectors[2, 1])


def test_id_dropout_trains_the_unknown_id_and_only_in_training() -> None:
    layer = _fields(id_dropout=0.3)
    ids = torch.full((4000,), 3)
    dropped = (layer(ids)[:, 0] == layer.table.weight[1]).all(1)
    assert 0.25 < dropped.float().mean().item() < 0.35
    assert torch.equal(layer(ids)[:, 1], layer.table.weight[5 + BRAND[3]].expand(4000, -1))  # fields are kept
    layer(ids)[:, 0].sum().backward()
    assert layer.table.weight.grad is not None
    assert layer.table.weight.grad[1].any()
    layer.eval()
    assert torch.equal(layer(ids)[:, 0], layer.table.weight[3].expand(4000, -1))


def test_id_dropout_follows_torchs_generator() -> None:
    layer = _fields(id_dropout=0.5)
    ids = torch.full((100,), 3)
    state = torch.get_rng_state()
    first = layer(ids)
    torch.set_rng_state(state)
    assert torch.equal(layer(ids), first)


def test_one_table_holds_ids_and_codes() -> None:
    layer = _fields()
    assert [type(m) for m in layer.modules()].count(Table) == 1
    assert layer.table.weight.shape[0] == 5 + 4 + 5 + 6


def test_an_entity_without_fields_is_its_id() -> None:
    layer = EntityFields(Entity("user", (), 4, 6), 2).eval()
    layer.fill(SimpleNamespace(categorical=np.zeros((6, 0), np.int32), numeric=np.zeros((6, 0), np.float32), multi={}))  # type: ignore[arg-type]
    assert torch.equal(layer(torch.tensor([2, 5])), layer.table.weight[[2, 1]][:, None])
    assert layer.mean(torch.tensor([[0, 2, 3]])).shape == (1, 1, 2)


def test_before_filling_every_field_is_missing() -> None:
    layer = EntityFields(ITEM, 3)
    layer(IDS).sum().backward()
    assert layer(IDS).isfinite().all()
    assert not layer(IDS)[..., 3, :].any()


def test_save_and_load_without_the_data_set(tmp_path: Path) -> None:
    layer = _fields().eval()
    fresh = EntityFields(ITEM, 3).eval()
    save_file(layer.state_dict(), tmp_path / "x.safetensors")
    fresh.load_state_dict(load_file(tmp_path / "x.safetensors"))
    assert torch.equal(fresh(IDS), layer(IDS))
    other = _fields()  # and on top of a filled one
    other.fill(_table(multi={"tags": (np.zeros(9, np.int64), np.zeros(0, np.int32))}))
    other.load_state_dict(fresh.state_dict())
    assert torch.equal(other.eval()(IDS), layer(IDS))


def test_exports_for_any_number_of_rows() -> None:
    layer = _fields().eval()
    graph = torch.export.export(layer, (IDS,), dynamic_shapes=({0: torch.export.Dim("rows")},), strict=False).module()
    ids = torch.tensor([[1, 1, 0, 2], [7, 7, 7, 7], [0, 0, 0, 0], [3, 6, 5, 4], [2, 2, 0, 0]])
    torch.testing.assert_close(graph(ids), layer(ids))


def test_a_table_of_another_size_is_refused() -> None:
    with pytest.raises(ConfigError, match="item"):
        _fields().fill(_table(categorical=np.zeros((9, 2), np.int32)))
    with pytest.raises(ConfigError, match="dataset"):
        EntityFields(Entity("user"), 3)


def test_context_by_hand() -> None:
    torch.manual_seed(0)
    layer = ContextFields((Field("hour", "categorical", 4), Field("age", "numeric"), Field("tags", "multi", 5)), 2)
    assert layer.table is not None
    assert layer.numbers is not None
    torch.nn.init.normal_(layer.numbers.missing)
    found = layer({"hour": torch.tensor([3, 0]), "age": torch.tensor([2.0, NAN]), "tags": torch.tensor([[2, 4, 0], [0, 0, 0]])})
    weight, zero = layer.table.weight, torch.zeros(2)
    hour, tags = 1, 1 + 4
    expected = torch.stack(
        [
            torch.stack([weight[hour + 3], (weight[tags + 2] + weight[tags + 4]) / 2, 2 * layer.numbers.slope[0]]),
            torch.stack([zero, zero, layer.numbers.missing[0]]),
        ]
    )
    torch.testing.assert_close(found, expected)


def test_rows_none_of_which_has_a_value() -> None:
    none = take_context((np.array([0, 0, 0, 2]), np.array([3, 4])), np.array([1, 0]))
    np.testing.assert_array_equal(none, [[0], [0]])
    for sparse in (True, False):
        layer = ContextFields((Field("tags", "multi", 5),), 2)
        assert layer.table is not None
        layer.table.sparse = sparse
        assert not layer({"tags": torch.from_numpy(none)}).any()


USER = Entity("user", (Field("age", "numeric"),), trained=6, size=9)
SCHEMA = Schema(USER, ITEM, (Domain("a"), Domain("b")), context=(Field("hour", "categorical", 4),))


def _batch(rows: slice = slice(None)) -> Batch:
    whole = {
        "user": torch.tensor([2, 3, 8]),
        "item": torch.tensor([[2, 3], [7, 0], [4, 5]]),
        "domain": torch.tensor([0, 0, 1]),
        "history": torch.tensor([[0, 2, 3], [0, 0, 0], [5, 6, 7]]),
        "cross_history": torch.tensor([[0, 0, 4], [2, 2, 2], [0, 0, 0]]),
    }
    return Batch(offsets=(0, 2, 3), context={"hour": torch.tensor([1, 2, 0])[rows]}, **{k: v[rows] for k, v in whole.items()})


@pytest.mark.parametrize("history", [True, False])
@pytest.mark.parametrize("cross_history", [True, False])
def test_inputs_have_the_width_they_say(history: bool, cross_history: bool) -> None:
    inputs = Inputs(SCHEMA, 4, history=history, cross_history=cross_history)
    batch = _batch()
    if not history:
        batch.history = None
    if not cross_history:
        batch.cross_history = None
    x = inputs(batch)
    assert x.shape == (3, 2, inputs.width)
    x.sum().backward()
    assert all(p.grad is not None for p in inputs.parameters())


def test_inputs_share_one_item_layer_and_candidates_do_not_meet() -> None:
    inputs = Inputs(SCHEMA, 4, cross_history=True).eval()
    inputs.item.fill(_table())
    assert sum(isinstance(m, EntityFields) for m in inputs.modules()) == 2
    batch = _batch()
    whole = inputs(batch)
    for c in range(2):
        alone = copy.copy(batch)
        alone.item = batch.item[:, c : c + 1]
        torch.testing.assert_close(inputs(alone), whole[:, c : c + 1])
    for row in range(3):
        torch.testing.assert_close(inputs(_batch(slice(row, row + 1))), whole[row : row + 1])


def test_inputs_hold_the_mean_of_the_history_and_its_length() -> None:
    inputs = Inputs(SCHEMA, 4).eval()
    inputs.item.fill(_table())
    x = inputs(_batch())[:, 0]
    begin = (inputs.user.fields + 1 + 1) * 4  # user, domain, context come first
    width = inputs.item.fields * 4
    expected = (inputs.item(torch.tensor([2, 3])).sum(0) / 2).flatten()
    torch.testing.assert_close(x[0, begin : begin + width], expected)
    assert not x[1, begin : begin + width + 1].any()  # an empty history: zeros, finite
    torch.testing.assert_close(x[:, begin + width], torch.tensor([2.0, 0.0, 3.0]).log1p() / 4)


def test_fill_reaches_every_entity() -> None:
    inputs = Inputs(SCHEMA, 4)
    ages = np.arange(9, dtype=np.float32)[:, None]
    user = SimpleNamespace(categorical=np.zeros((9, 0), np.int32), numeric=ages, multi={})
    fill(inputs, SimpleNamespace(user_table=user, item_table=_table()))  # type: ignore[arg-type]
    assert torch.equal(inputs.user.numeric, torch.from_numpy(ages))
    assert inputs.item.field_rows[2].tolist() == [5 + BRAND[2], 5 + 4 + SHOP[2]]


@pytest.mark.parametrize(("label", "levels"), [("rating", [2.0, 5.0]), ("click", [math.log(1.5 / 1.5), math.log(3.5 / 0.5)])])
def test_a_network_starts_from_the_domains_levels(label: LabelKind, levels: list[float]) -> None:
    labels = {"rating": [1, 3, 5, 5, 5], "click": [1, 0, 1, 1, 1]}[label]
    rows = SimpleNamespace(domain=np.array([0, 0, 1, 1, 1], np.int16), offsets=np.array([0, 2, 5]), label=np.array(labels, np.float32))
    inputs = Inputs(dataclasses.replace(SCHEMA, label=label), 4).eval()
    inputs.levels.take(SimpleNamespace(part=lambda _: rows))  # type: ignore[arg-type]
    assert inputs.levels.level.tolist() == pytest.approx(levels)
    batch = _batch()
    network = DNNNetwork(2, inputs.width, out=1)
    plain = network(inputs(batch).flatten(0, 1), batch.item_offsets).view(3, 2)
    expected = plain + torch.tensor([levels[0], levels[0], levels[1]])[:, None]
    torch.testing.assert_close(inputs.logit(network, batch), expected)
