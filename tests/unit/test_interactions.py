"""Fields that meet, against sums written out; target attention, against a padded one."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from isthmus.errors import ConfigError
from isthmus.layers.interactions import CIN, CrossNetwork, FieldAttention, bi_interaction
from isthmus.layers.target_attention import Dice, TargetAttention


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 99))
def test_bi_interaction_is_the_sum_over_pairs(fields: int, dim: int, seed: int) -> None:
    x = drawn(3, fields, dim, seed=seed)
    pairs = sum((x[:, f] * x[:, g] for f, g in itertools.combinations(range(fields), 2)), torch.zeros(3, dim))
    torch.testing.assert_close(bi_interaction(x), pairs, rtol=1e-4, atol=1e-5)


@given(st.integers(1, 4), st.lists(st.integers(1, 3), min_size=1, max_size=3), st.integers(0, 99))
@settings(max_examples=20, deadline=None)
def test_cin_is_its_sums_written_out(fields: int, widths: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    cin, x = CIN(fields, widths), drawn(2, fields, 3, seed=seed)
    now, found = x, []
    for layer, width in zip(cin.layers, widths, strict=True):
        w = layer.weight.view(width, now.shape[1], fields)
        next_ = torch.zeros(2, width, 3)
        for h, i, j in itertools.product(range(width), range(now.shape[1]), range(fields)):
            next_[:, h] += w[h, i, j] * now[:, i] * x[:, j]  # eq. 6
        now = next_
        found.append(now.sum(2))
    assert cin.width == sum(widths)
    torch.testing.assert_close(cin(x), torch.cat(found, 1), rtol=1e-4, atol=1e-5)


def test_cin_wants_a_layer() -> None:
    with pytest.raises(ConfigError, match="at least one width"):
        CIN(3, ())


@pytest.mark.parametrize("rank", [None, 2])
def test_cross_network_multiplies_by_its_input_at_every_layer(rank: int | None) -> None:
    cross, x = CrossNetwork(3, 2, rank), drawn(4, 3)
    now = x
    for layer in cross.layers:
        weight, bias = (layer.weight, layer.bias) if rank is None else (layer[1].weight @ layer[0].weight, layer[1].bias)
        assert torch.linalg.matrix_rank(weight) == (3 if rank is None else rank)
        now = x * (now @ weight.T + bias) + now
    torch.testing.assert_close(cross(x), now)
    torch.testing.assert_close(CrossNetwork(3, 0)(x), x)


def test_field_attention_written_out() -> None:
    layer, x = FieldAttention(4, 6, heads=2), drawn(2, 3, 4)
    heads = []
    for h in range(2):
        q, k, v = (x @ part.weight[3 * h : 3 * h + 3].T for part in (layer.query, layer.key, layer.value))
        heads.append((q @ k.transpose(1, 2)).softmax(-1) @ v)  # eq. 5-7: not scaled
    expected = (torch.cat(heads, 2) + x @ layer.rest.weight.T).relu()
    torch.testing.assert_close(layer(x), expected)
    with pytest.raises(ConfigError, match="heads that divide the width"):
        FieldAttention(4, 6, heads=4)


# ---------------------------------------------------------------- target attention


def test_dice_by_hand() -> None:
    dice = Dice(1)
    with torch.no_grad():
        dice.slope.fill_(0.5)
    x = torch.tensor([[0.0], [2.0]])  # mean 1, biased variance 1: p = s(-1), s(1)
    p = torch.tensor([[-1.0], [1.0]]).sigmoid()
    torch.testing.assert_close(dice(x), p * x + (1 - p) * 0.5 * x)
    dice.eval()
    p = ((x - dice.running_mean) / dice.running_var.sqrt()).sigmoid()
    torch.testing.assert_close(dice(x), p * x + (1 - p) * 0.5 * x)
    torch.testing.assert_close(dice.running_mean, torch.tensor([0.1]))  # a tenth of the way to the batch's


@pytest.mark.parametrize("rows", [0, 1])
def test_dice_has_no_statistics_of_a_row(rows: int) -> None:
    dice, x = Dice(2), torch.full((rows, 2), 3.0)
    torch.testing.assert_close(dice(x), x * x.sigmoid(), rtol=1e-5, atol=1e-5)  # mean 0, variance 1, slope 0
    assert torch.equal(dice.running_mean, torch.zeros(2))


@pytest.mark.parametrize("training", [True, False])
def test_dice_backward_is_the_formulas(training: bool) -> None:
    """Eq. 10 written out, whose gradients PyTorch finds by itself."""
    torch.manual_seed(0)
    dice = Dice(3).double().train(training)
    with torch.no_grad():
        dice.slope.normal_()
        dice.running_mean.fill_(0.5)
    found, written = [], []
    x, weight = torch.randn(6, 3, dtype=torch.float64) * 2 + 1, torch.randn(6, 3, dtype=torch.float64)
    mean, var = (x.mean(0), x.var(0, correction=0)) if training else (dice.running_mean.clone(), dice.running_var.clone())
    one, other = (x.clone().requires_grad_() for _ in range(2))
    (dice(one) * weight).sum().backward()
    found += [one.grad, dice.slope.grad]
    slope = dice.slope.detach().clone().requires_grad_()
    if training:
        mean, var = other.mean(0), other.var(0, correction=0)
    p = ((other - mean) / (var + 1e-8).sqrt()).sigmoid()
    ((p * other + (1 - p) * slope * other) * weight).sum().backward()
    written += [other.grad, slope.grad]
    for got, expected in zip(found, written, strict=True):
        torch.testing.assert_close(got, expected)


def padded_attention(unit: TargetAttention, history: Tensor, real: Tensor, query: Tensor) -> Tensor:
    """(B, L, w) events, (B, L) bool, (B, C, w) -> (B, C, w), one event and one candidate after the other."""
    out = torch.zeros_like(query)
    for b, c in itertools.product(range(len(query)), range(query.shape[1])):
        score = torch.full((real.shape[1],), -torch.inf if unit.softmax else 0.0)
        for j in real[b].nonzero().flatten().tolist():
            e, q = history[b, j], query[b, c]
            x = unit.event(e) + unit.query(q) + unit.both(e * q)
            score[j] = unit.rest(x[None]).squeeze()
        weight = (score.softmax(0) if real[b].any() else torch.zeros_like(score)) if unit.softmax else score
        out[b, c] = weight @ history[b]
    return out


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("hidden", [(5,), (5, 4)])
def test_packed_attention_is_the_padded_one(softmax: bool, hidden: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    unit = TargetAttention(3, hidden, softmax=softmax).eval()
    history, query = drawn(4, 6, 3, seed=1), drawn(4, 2, 3, seed=2)
    real = torch.tensor([[0, 0, 1, 1, 0, 1], [0] * 6, [1] * 6, [0, 0, 0, 0, 0, 1]], dtype=torch.bool)
    row = real.nonzero()[:, 0]
    found = unit(history[real], row, query)
    torch.testing.assert_close(found, padded_attention(unit, history, real, query), rtol=1e-4, atol=1e-5)
    assert torch.equal(found[1], torch.zeros(2, 3))  # no events: exactly nothing
    if softmax:
        total = torch.zeros(4, 2).index_add(0, row, unit.weights(history[real], row, query))
        torch.testing.assert_close(total, torch.tensor([[1.0, 1], [0, 0], [1, 1], [1, 1]]))


def test_nobody_has_events() -> None:
    unit = TargetAttention(3)
    found = unit(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), drawn(2, 1, 3))
    assert torch.equal(found, torch.zeros(2, 1, 3))
