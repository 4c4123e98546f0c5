"""Layers per domain against plain loops over the domains."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from isthmus.layers.domain import DomainBatchNorm, DomainLinear, DomainMLP, Experts, PerDomain, _together, grouped_linear

OFFSETS = [(0, 3, 3, 4, 9), (0, 0, 0, 0, 9), (0, 9, 9, 9, 9), (0, 2, 5, 7, 9)]


def _loop(x: Tensor, offsets: Sequence[int], weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.cat([F.linear(x[offsets[d] : offsets[d + 1]], weight[d], None if bias is None else bias[d]) for d in range(len(weight))])


def _leaves(*shapes: tuple[int, ...]) -> list[Tensor]:
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("offsets", OFFSETS)
def test_grouped_linear_is_a_loop_of_linear(offsets: tuple[int, ...], with_bias: bool) -> None:
    torch.manual_seed(0)
    x, weight, bias, up = _leaves((9, 3), (4, 2, 3), (4, 2), (9, 2))
    inputs = [x, weight, bias] if with_bias else [x, weight]
    both = [f(x, offsets, weight, bias if with_bias else None) for f in (grouped_linear, _loop)]
    torch.testing.assert_close(*both)
    found, expected = (torch.autograd.grad(out, inputs, up.detach()) for out in both)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    absent = [d for d in range(4) if offsets[d] == offsets[d + 1]]
    assert not found[1][absent].any()  # exact zeros
    if with_bias:
        assert not found[2][absent].any()


@pytest.mark.parametrize("offsets", OFFSETS)
def test_gradients_by_differences(offsets: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x, weight, bias = _leaves((9, 3), (4, 2, 3), (4, 2))
    assert torch.autograd.gradcheck(lambda x, w, b: grouped_linear(x, offsets, w, b), (x, weight, bias))
    assert torch.autograd.gradcheck(lambda x, w: grouped_linear(x, offsets, w), (x, weight))


@given(st.lists(st.integers(0, 4) | st.integers(40, 90), min_size=1, max_size=9), st.integers(1, 4), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_any_sizes(sizes: list[int], width: int, out: int) -> None:
    offsets = [0, *torch.tensor(sizes).cumsum(0).tolist()]
    inputs = x, weight, bias = _leaves((offsets[-1], width), (len(sizes), out, width), (len(sizes), out))
    both = [f(x, offsets, weight, bias) for f in (grouped_linear, _loop)]
    torch.testing.assert_close(*both)
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), inputs, materialize_grads=True) for y in both), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("sizes", "numbers", "together"),
    [
        ((40,) * 100, 100, True),
        ((5, 0, 7, 5), 100, True),
        ((40,) * 100 + (4000,), 100, False),  # as many rows as the largest domain has would stand there for each
        ((2000, 1000, 500), 100, False),  # each fills a product of its own
        ((40,) * 99 + (60,), 10_000, True),
        ((40,) * 99 + (60,), 100_000, False),  # multiplying the padding takes longer than calling
        ((0, 0), 100, False),
    ],
)
def test_small_domains_of_about_one_size_are_multiplied_at_once(sizes: tuple[int, ...], numbers: int, together: bool) -> None:
    assert (_together(sizes, numbers, torch.device("cpu")) is not None) == together


@pytest.mark.parametrize("sizes", [(3, 2, 0, 3), (3, 200, 0, 3)])
def test_what_is_not_finite_in_a_domain_does_not_reach_another(sizes: tuple[int, ...]) -> None:
    offsets = [0, *torch.tensor(sizes).cumsum(0).tolist()]
    x, weight = torch.randn(offsets[-1], 3), torch.randn(4, 2, 3, requires_grad=True)
    x[offsets[1] : offsets[2]] = torch.nan
    out = grouped_linear(x, offsets, weight)
    (found,) = torch.autograd.grad(out[out.isfinite()].sum(), [weight])
    assert found[[0, 2, 3]].isfinite().all()
    assert not found[2].any()
    assert found[0].any()
    assert out[: offsets[1]].isfinite().all()
    assert out[offsets[2] :].isfinite().all()


def test_storage_need_not_be_contiguous() -> None:
    x, weight = torch.randn(3, 9).T, torch.randn(2, 3, 4).transpose(1, 2).requires_grad_()
    out = grouped_linear(x, (0, 4, 9), weight)
    torch.testing.assert_close(out, _loop(x, (0, 4, 9), weight, None))
    (found,) = torch.autograd.grad(out.T.sum(), [weight])
    (expected,) = torch.autograd.grad(_loop(x, (0, 4, 9), weight, None).sum(), [weight])
    torch.testing.assert_close(found, expected)


def test_a_single_input_gradient() -> None:
    x, weight, bias = _leaves((5, 3), (2, 2, 3), (2, 2))
    for wanted in (x, weight, bias):
        for leaf in (x, weight, bias):
            leaf.requires_grad_(leaf is wanted)
        (found,) = torch.autograd.grad(grouped_linear(x, (0, 1, 5), weight, bias).square().sum(), [wanted])
        (expected,) = torch.autograd.grad(_loop(x, (0, 1, 5), weight, bias).square().sum(), [wanted])
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("offsets", [(0, 5), (0, 2, 3, 4, 5), (0, 2, 4)])
def test_offsets_of_other_domains_or_rows_are_refused(offsets: tuple[int, ...]) -> None:
    with pytest.raises((ValueError, RuntimeError)):
        grouped_linear(torch.randn(5, 3), offsets, torch.randn(2, 2, 3))


def test_linear_starts_like_torch_and_specialises() -> None:
    layer = DomainLinear(50, 16, 8)
    bound = 1 / 16**0.5
    assert layer.weight.abs().max() <= bound
    assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    x = torch.randn(7, 16)
    plain = layer.specialise(3)
    torch.testing.assert_close(plain(x), layer(x, (0, 0, 0, 0, *(7,) * 47)))
    with torch.no_grad():
        plain.weight.zero_()
    assert layer.weight[3].any()  # a copy
    assert DomainLinear(2, 3, 4, bias=False).specialise(0).bias is None


def test_batch_norm_is_torchs_own_for_each_domain() -> None:
    torch.manual_seed(0)
    norm = DomainBatchNorm(3, 4)
    plain = [nn.BatchNorm1d(4) for _ in range(3)]
    with torch.no_grad():
        assert norm.weight is not None
        assert norm.bias is not None
        for d, one in enumerate(plain):
            one.weight.copy_(norm.weight[d].normal_())
            one.bias.copy_(norm.bias[d].normal_())
    for offsets in ((0, 5, 7, 12), (0, 2, 2, 12)):
        x = (torch.randn(12, 4) * 3 + 10).requires_grad_()
        other = x.detach().clone().requires_grad_()
        up = torch.randn(12, 4)
        out = norm(x, offsets)
        expected = torch.cat([one(other[offsets[d] : offsets[d + 1]]) for d, one in enumerate(plain) if offsets[d] < offsets[d + 1]])
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(*(torch.autograd.grad(o, i, up)[0] for o, i in ((out, x), (expected, other))), rtol=1e-3, atol=1e-4)
        for d, one in enumerate(plain):
            torch.testing.assert_close(norm.running_mean[d], one.running_mean)
            torch.testing.assert_close(norm.running_var[d], one.running_var)


def test_batch_norm_of_one_domain_does_not_see_another() -> None:
    torch.manual_seed(0)
    norm, again = DomainBatchNorm(2, 3), DomainBatchNorm(2, 3)
    x = torch.randn(10, 3)
    changed = x.clone()
    changed[4:] = changed[4:] * 1000 - 7
    a, b = norm(x, (0, 4, 10)), again(changed, (0, 4, 10))
    assert torch.equal(a[:4], b[:4])
    assert torch.equal(norm.running_mean[0], again.running_mean[0])
    assert torch.equal(norm.running_var[0], again.running_var[0])
    assert not torch.equal(norm.running_mean[1], again.running_mean[1])


@pytest.mark.parametrize("rows", [0, 1])
def test_a_domain_of_no_row_or_one_keeps_its_running_statistics(rows: int) -> None:
    torch.manual_seed(0)
    norm = DomainBatchNorm(2, 3)
    norm.running_mean[0] = 5.0
    norm.running_var[0] = 4.0
    x = torch.randn(rows + 4, 3)
    out = norm(x, (0, rows, rows + 4))
    assert norm.running_mean[0].tolist() == [5.0] * 3
    assert norm.running_var[0].tolist() == [4.0] * 3
    torch.testing.assert_close(out[:rows], (x[:rows] - 5) / 2, rtol=1e-4, atol=1e-4)
    assert out.isfinite().all()
    torch.testing.assert_close(out[rows:].mean(0), torch.zeros(3), atol=1e-5, rtol=0)


def test_batch_norm_in_evaluation_uses_and_keeps_the_running_statistics() -> None:
    norm = DomainBatchNorm(2, 3)
    norm(torch.randn(10, 3) + 2, (0, 4, 10))
    norm.eval()
    before = norm.running_mean.clone()
    x = torch.randn(6, 3)
    out = norm(x, (0, 2, 6))
    assert torch.equal(before, norm.running_mean)
    torch.testing.assert_close(out[:2], norm.specialise(0)(x[:2]))
    torch.testing.assert_close(out[2:], norm.specialise(1)(x[2:]))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("hidden", [(), (5,), (5, 3)])
@pytest.mark.parametrize("out", [None, 1])
def test_domain_mlp_equals_its_specialised_parts(norm: bool, hidden: tuple[int, ...], out: int | None) -> None:
    torch.manual_seed(0)
    net = DomainMLP(3, 4, hidden, out=out, dropout=0.3, norm=norm)
    net(torch.randn(20, 4), (0, 8, 8, 20))  # moves the running statistics
    net.eval()
    x, offsets = torch.randn(7, 4), (0, 2, 3, 7)
    whole = net(x, offsets)
    assert whole.shape == (7, net.width)
    for d in range(3):
        part = net.specialise(d)
        assert not part.training
        torch.testing.assert_close(part(x[offsets[d] : offsets[d + 1]]), whole[offsets[d] : offsets[d + 1]])


def test_per_domain_runs_each_copy_on_its_own_rows() -> None:
    torch.manual_seed(0)
    net = PerDomain(3, lambda: nn.Linear(2, 2))
    x = torch.randn(5, 2)
    out = net(x, (0, 3, 3, 5))
    torch.testing.assert_close(out[:3], net.specialise(0)(x[:3]))
    torch.testing.assert_close(out[3:], net.specialise(2)(x[3:]))
    out.sum().backward()
    assert all(p.grad is None for p in net.specialise(1).parameters())
    assert all(p.grad is not None for p in net.specialise(2).parameters())
    assert net(x[:0], (0, 0, 0, 0)).shape == (0, 2)


def test_experts_are_mlps_side_by_side() -> None:
    torch.manual_seed(0)
    net = Experts(3, 4, (5, 2))
    x = torch.randn(6, 4)
    out = net(x)
    assert out.shape == (6, 3, 2)
    assert net.width == 2
    for e in range(3):
        h = x
        for weight, bias in zip(net.weights, net.biases, strict=True):
            h = F.linear(h, weight[e], bias[e]).relu()
        torch.testing.assert_close(out[:, e], h)
