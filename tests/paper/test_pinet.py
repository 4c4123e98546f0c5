"""PiNet: the account filter by hand and written out, and what a row may and may not read."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from isthmus.batch import Batch
from isthmus.errors import ConfigError
from isthmus.models.pinet import PiNet, _AccountFilter
from isthmus.schema import Schema


@pytest.fixture
def rows(batch: Batch) -> Batch:
    """Histories of two domains; the third row has nothing at all, the second nothing elsewhere."""
    batch.cross_history = torch.tensor([[0, 3, 4], [0, 0, 0], [0, 0, 0], [2, 4, 3], [0, 0, 5]])
    batch.cross_domain = torch.tensor([[-1, 1, 1], [-1, -1, -1], [-1, -1, -1], [0, 0, 0], [-1, -1, 0]])
    return batch


def made(schema: Schema, **args: int) -> PiNet:
    torch.manual_seed(0)
    model = PiNet(schema, dim=4, id_dropout=0.0, **args)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.3 * torch.randn_like(weight)
        for table in (model.items.table, model.biases):
            table.weight[0] = 0.0
        model.levels.level.copy_(torch.tensor([-1.0, 2.0]))
    return model.eval()


def test_the_filter_by_hand() -> None:
    unit = _AccountFilter(1, 1, 2)
    with torch.no_grad():
        for weight in unit.parameters():
            weight.zero_()
        unit.event[0] = torch.tensor([[0.0], [1.0]])  # c = tanh(h + u + s / 2)
        unit.own[0] = 1.0  # f = sigmoid(own + 2 u)
        unit.before[0] = torch.tensor([[0.0], [0.5]])
        unit.latent[0] = torch.tensor([[2.0], [1.0]])
        unit.users[0] = torch.tensor([[1.0], [-1.0]])
    found = unit(torch.tensor([[[0.5], [-0.3]]]), torch.tensor([[0.4]]), (0, 1))
    # f = sigmoid(2.4) = .916827 and sigmoid(-1.6) = .167982
    # i = 1: c = tanh(1.5) = .905148, tanh(-.5) = -.462117;  s = (.829865 - .077627) / 2 = .376119
    # i = 2: c = tanh(.7 + .188060) = .710412, tanh(-1.3 + .188060) = -.804601
    #        s = (.651325 + .083173 * .376119 - .135159 + .832018 * .376119) / 2 = .430192
    torch.testing.assert_close(found, torch.tensor([[[0.376119], [0.430192]]]), rtol=0, atol=2e-6)


def gru(unit: nn.Module, events: list[Tensor]) -> list[Tensor]:
    """The states of a GRU, one event after the other."""
    cell, h, states = unit.gru, unit.start, []  # type: ignore[attr-defined]
    for x in events:
        ri, zi, ni = (cell.weight_ih_l0 @ x + cell.bias_ih_l0).chunk(3)
        rh, zh, nh = (cell.weight_hh_l0 @ h + cell.bias_hh_l0).chunk(3)
        z, n = (zi + zh).sigmoid(), (ni + (ri + rh).sigmoid() * nh).tanh()
        h = (1 - z) * n + z * h
        states.append(h)
    return states


def filtered(unit: _AccountFilter, d: int, states: list[Tensor], own: Tensor) -> list[Tensor]:
    """Latent user by latent user."""
    s, found = torch.zeros_like(own), []
    for h in states:
        ones = []
        for u in unit.users[d]:
            x = unit.event[d] @ h + unit.before[d] @ s + unit.latent[d] @ u + unit.bias[d]
            f = (x[: len(s)] + unit.own[d] @ own).sigmoid()
            ones.append(f * x[len(s) :].tanh() + (1 - f) * s)
        s = torch.stack(ones).mean(0)
        found.append(s)
    return found


def test_scores_written_out(schema: Schema, rows: Batch) -> None:
    model = made(schema, users=3)
    assert rows.history is not None
    assert rows.cross_history is not None
    encoders, e = model.encoders.encoders.copies, model.items.table.weight
    expected = torch.zeros(rows.item.shape)
    for b, d in enumerate(rows.domain.tolist()):
        here, there = (gru(encoders[k], [e[i] for i in past[b] if i]) for k, past in ((d, rows.history), (1 - d, rows.cross_history)))
        own = here[-1] if here else torch.zeros(4)
        passed = gru(model.transfers.copies[d], filtered(model.filters, d, there, own))
        z = passed[-1] if passed else torch.zeros(4)
        for c, item in enumerate(rows.item[b].tolist()):
            bias = model.biases.weight[d * 6 + item, 0]
            expected[b, c] = e[item] @ own + e[item] @ z + bias + model.levels.level[d]
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
    assert (changed[0] - before[0]).abs().min() > 1e-4
    torch.testing.assert_close(changed[1:], before[1:])
    swapped = rows.cross_history.clone()
    swapped[3] = torch.tensor([2, 3, 4])
    assert (model(dataclasses.replace(rows, cross_history=swapped)).logit[3] - before[3]).abs().min() > 1e-4, "order counts"
    empty = {"cross_history": rows.cross_history[:, :0], "cross_domain": rows.cross_domain[:, :0]}
    none = model(dataclasses.replace(rows, **empty)).logit
    torch.testing.assert_close(none[1:3], before[1:3])


def test_the_others_encoder_is_that_of_the_event_and_the_filter_that_of_the_row(schema: Schema, rows: Batch) -> None:
    model = made(schema)
    alone = rows.take(torch.tensor([0]), torch.zeros(1, dtype=torch.int64))
    model(alone).logit.sum().backward()
    assert all((c.gru.weight_ih_l0.grad != 0).any() for c in model.encoders.encoders.copies)  # type: ignore[union-attr]
    assert (model.filters.users.grad[0] != 0).all()
    assert torch.equal(model.filters.users.grad[1], torch.zeros(4, 4))
    assert model.transfers.copies[1].start.grad is None


def test_settings_out_of_range_are_refused(schema: Schema) -> None:
    with pytest.raises(ConfigError, match="1 or more"):
        PiNet(schema, users=0)
