"""DASL: maps between domains are orthogonal, the dual embedding by hand, scores written out."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from isthmus.batch import Batch
from isthmus.errors import ConfigError
from isthmus.models.dasl import DASL, _DualEmbedding
from isthmus.schema import Domain, Schema


@pytest.fixture
def rows(batch: Batch) -> Batch:
    """Histories of two domains; the third row has nothing at all, the second nothing elsewhere."""
    batch.cross_history = torch.tensor([[0, 3, 4], [0, 0, 0], [0, 0, 0], [2, 4, 3], [0, 0, 5]])
    batch.cross_domain = torch.tensor([[-1, 1, 1], [-1, -1, -1], [-1, -1, -1], [0, 0, 0], [-1, -1, 0]])
    return batch


def made(schema: Schema, **args: Any) -> DASL:
    torch.manual_seed(0)
    model = DASL(schema, dim=4, hidden=(5,), id_dropout=0.0, **args)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.5 * torch.randn_like(weight)
        for table in (model.items.table, model.embedding.factors):
            table.weight[0] = 0.0
        model.levels.level.copy_(torch.tensor([-1.0, 2.0]))
    return model.eval()


def test_maps_are_orthogonal_and_stay_so(schema: Schema, rows: Batch) -> None:
    model = made(schema).train()
    optimiser = torch.optim.Adam(model.parameters(), 0.1)
    before = model.embedding.maps()
    for _ in range(5):
        optimiser.zero_grad()
        (model(rows).logit.square().sum() + model(rows).extra["dual"]).backward()
        optimiser.step()
    now = model.embedding.maps()
    assert (now - before).abs().max() > 0.01
    for maps in (before, now):
        torch.testing.assert_close(maps @ maps.transpose(1, 2), torch.eye(4).expand(2, 4, 4), rtol=0, atol=1e-5)


def test_the_dual_embedding_by_hand(schema: Schema, rows: Batch) -> None:
    three = dataclasses.replace(schema, domains=(Domain("a"), Domain("b"), Domain("c")))
    unit = _DualEmbedding(three, 2, 0.0)
    with torch.no_grad():
        assert not unit.factors.weight.any(), "a user without events in a domain has nothing there"
        unit.turn.zero_()
        unit.turn[1, 0, 1] = -0.5  # S = [[0, -1/2], [1/2, 0]]: O = [[3, 4], [-4, 3]] / 5
        unit.turn[2, 0, 1] = -1.0  # S = [[0, -1], [1, 0]]: O = [[0, 1], [-1, 0]]
        unit.factors.weight[2] = torch.tensor([7.0, 7.0])  # user 2 in a
        unit.factors.weight[6 + 2] = torch.tensor([5.0, 10.0])  # in b
        unit.factors.weight[12 + 2] = torch.tensor([3.0, -6.0])  # in c
    torch.testing.assert_close(unit.maps(), torch.tensor([[[1.0, 0], [0, 1]], [[0.6, 0.8], [-0.8, 0.6]], [[0.0, 1], [-1, 0]]]))
    past = {"cross_history": torch.tensor([[2, 3, 4, 0]]), "cross_domain": torch.tensor([[1, 2, 1, 2]])}
    batch = Batch(torch.tensor([2]), torch.tensor([[2]]), torch.tensor([0]), (0, 1, 1, 1), **past)
    here, there = unit(batch)
    assert here.tolist() == [[7, 7]]
    # O_b p_b = [.6 * 5 + .8 * 10, -.8 * 5 + .6 * 10] = [11, 2], two events of three; O_c p_c = [-6, -3]
    torch.testing.assert_close(there, torch.tensor([[(2 * 11 - 6) / 3, (2 * 2 - 3) / 3]]))
    past = {"cross_history": torch.tensor([[5]]), "cross_domain": torch.tensor([[0]])}
    back = unit(Batch(torch.tensor([2]), torch.tensor([[2]]), torch.tensor([1]), (0, 0, 1, 1), **past))[1]
    torch.testing.assert_close(back, torch.tensor([[7 * (0.6 - 0.8), 7 * (0.8 + 0.6)]]))  # the transpose


def attended(states: Tensor, query: Tensor) -> Tensor:
    return (states @ query / math.sqrt(len(query))).softmax(0) @ states if len(states) else torch.zeros_like(query)


def test_scores_written_out(schema: Schema, rows: Batch) -> None:
    model = made(schema)
    assert rows.history is not None
    assert rows.cross_history is not None
    maps, factors, v = model.embedding.maps(), model.embedding.factors.weight, model.items.table.weight
    expected, encoders = torch.zeros(rows.item.shape), model.encoders.encoders.copies
    for b, d in enumerate(rows.domain.tolist()):
        own, other = (encoders[k](v[past[b][past[b] > 0]][None])[0] for k, past in ((d, rows.history), (1 - d, rows.cross_history)))
        last = own[-1] if len(own) else torch.zeros(4)
        here, there = (factors[k * 6 + rows.user[b]] for k in (d, 1 - d))
        there = maps[d].T @ maps[1 - d] @ there if len(other) else torch.zeros(4)
        for c, item in enumerate(rows.item[b].tolist()):
            within, across = (
                attended(states, unit.state[d] @ last + unit.candidate[d] @ v[item])
                for unit, states in ((model.within, own), (model.across, other))
            )
            x = torch.cat([here, there, v[item], within, across])
            expected[b, c] = model.networks.specialise(d)(x[None])[0, 0] + model.levels.level[d]
    torch.testing.assert_close(model(rows).logit, expected)


def test_both_histories_count_and_padding_does_not(schema: Schema, rows: Batch) -> None:
    model = made(schema)
    before = model(rows).logit
    assert before.isfinite().all()
    assert rows.cross_history is not None
    assert rows.cross_domain is not None
    garbage = torch.where(rows.cross_history == 0, torch.tensor([7, 0, 1]), rows.cross_domain)
    torch.testing.assert_close(model(dataclasses.replace(rows, cross_domain=garbage)).logit, before)
    other = rows.cross_history.clone()
    other[0, 2] = 5
    changed = model(dataclasses.replace(rows, cross_history=other)).logit
    assert (changed[0] - before[0]).abs().min() > 1e-3
    torch.testing.assert_close(changed[1:], before[1:])
    empty = {"cross_history": rows.cross_history[:, :0], "cross_domain": rows.cross_domain[:, :0]}
    none = model(dataclasses.replace(rows, **empty)).logit
    torch.testing.assert_close(none[1:3], before[1:3])


def test_the_dual_loss_pulls_a_users_embeddings_together_in_training_alone(schema: Schema, rows: Batch) -> None:
    model = made(schema, dual=0.5)
    assert model(rows).extra == {}
    here, there = model.embedding(rows)
    apart = (here - there).square().sum(1)[[0, 3, 4]]  # the others have nothing elsewhere
    torch.testing.assert_close(model.train()(rows).extra["dual"], 0.5 * apart.mean())
    assert made(schema, dual=0.0).train()(rows).extra == {}
    rows.cross_history = torch.zeros_like(rows.history)
    rows.cross_domain = torch.full_like(rows.cross_history, -1)
    assert model(rows).extra["dual"].item() == 0


def test_settings_out_of_range_are_refused(schema: Schema) -> None:
    for args in ({"dual": -1.0}, {"dual": math.nan}, {"dim": 1}):
        with pytest.raises(ConfigError, match="or more"):
            DASL(schema, **args)  # type: ignore[arg-type]
