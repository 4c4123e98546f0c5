"""Cross-attention: numbers worked by hand, a plain computation, and padding."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from isthmus.errors import ConfigError
from isthmus.layers.attention import CrossAttention, Projection, masked_mean, masked_softmax


class TestMaskedSoftmax:
    @given(st.integers(0, 6), st.integers(1, 6), st.floats(0.1, 1e4), st.integers(0, 99))
    @settings(max_examples=60, deadline=None)
    def test_sums_to_one_over_real_keys_and_is_exactly_zero_elsewhere(self, real: int, pads: int, scale: float, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        scores = torch.randn(3, real + pads, generator=generator) * scale
        mask = (torch.arange(real + pads) < real)[torch.randperm(real + pads, generator=generator)].expand(3, -1)
        found = masked_softmax(scores, mask)
        assert (found[~mask] == 0).all()
        torch.testing.assert_close(found.sum(1), torch.full((3,), float(real > 0)))
        torch.testing.assert_close(found[mask].view(3, -1), scores[mask].view(3, -1).softmax(-1))

    def test_a_row_of_padding_gives_zeros_and_a_gradient_of_zero(self) -> None:
        scores = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
        found = masked_softmax(scores, torch.tensor([[False, False], [True, True]]))
        found.square().sum().backward()
        assert found[0].tolist() == [0, 0]
        assert scores.grad is not None
        assert scores.grad[0].tolist() == [0, 0]
        assert scores.grad.isfinite().all()
        assert scores.grad[1].abs().min() > 0


def test_masked_mean_by_hand() -> None:
    x = torch.tensor([[[1.0, 10.0], [3.0, 30.0], [100.0, 100.0]]])
    mask = torch.tensor([[[True, True, False], [False, True, False], [False, False, False]]])
    assert masked_mean(x, mask).tolist() == [[[2.0, 20.0], [3.0, 30.0], [0.0, 0.0]]]


class TestProjection:
    def test_one_copy_is_a_linear_map_without_bias(self) -> None:
        projection = Projection([0, 0], 2, 2)
        projection.weight.data.copy_(torch.tensor([[[1.0, 2.0], [0.0, -1.0]]]))
        x = torch.tensor([[[3.0, 4.0]], [[1.0, 0.0]]])
        assert projection(x, (0, 1, 2)).tolist() == [[[11.0, -4.0]], [[1.0, 0.0]]]
        assert projection.back(x, (0, 1, 2)).tolist() == [[[3.0, 2.0]], [[1.0, 2.0]]]

    def test_domains_meet_their_own_copy(self) -> None:
        projection = Projection([0, 1, 0], 2, 3)
        assert torch.equal(projection.weight[0], projection.weight[1]), "copies start alike"
        torch.nn.init.normal_(projection.weight)
        x, y = torch.randn(5, 4, 2), torch.randn(5, 4, 3)
        own = projection.weight[torch.tensor([0, 0, 1, 1, 0])]
        torch.testing.assert_close(projection(x, (0, 2, 4, 5)), x @ own.mT)
        torch.testing.assert_close(projection.back(y, (0, 2, 4, 5)), y @ own)

    def test_an_absent_domains_copy_has_gradient_zero(self) -> None:
        projection = Projection([0, 1], 2, 2)
        projection(torch.ones(2, 1, 2), (0, 2, 2)).sum().backward()
        assert projection.weight.grad is not None
        assert (projection.weight.grad[0] != 0).all()
        assert (projection.weight.grad[1] == 0).all()


def plainly(layer: CrossAttention, query: Tensor, key: Tensor, row: int, copy: int) -> np.ndarray:
    """Eq. 1 and 2 for one row, head by head, with loops."""
    w_q, w_k, w_v = (p.weight[copy].detach().numpy().astype(float) for p in (layer.query, layer.key, layer.value))
    x, y = query[row].numpy().astype(float), key[row].numpy().astype(float)
    width = len(w_q) // layer.heads
    out = []
    for head in range(layer.heads):
        own = slice(head * width, (head + 1) * width)
        q, k, v = x @ w_q[own].T, y @ w_k[own].T, y @ w_v[own].T
        weight = np.exp(q @ k.T / math.sqrt(width))
        out.append(weight / weight.sum(1, keepdims=True) @ v)
    return np.concatenate(out, 1)


class TestCrossAttention:
    def test_equation_1_by_hand(self) -> None:
        layer = CrossAttention([0], 1)
        for projection, value in ((layer.query, 2.0), (layer.key, 1.0), (layer.value, 3.0)):
            projection.weight.data.fill_(value)
        query, key = torch.tensor([[[0.5]]]), torch.tensor([[[0.0], [math.log(3)]]])
        # scores 0 and log 3: weights 1/4 and 3/4;  values 0 and 3 log 3
        weights = layer.scores(query, key, (0, 1)).softmax(-1)
        torch.testing.assert_close(weights, torch.tensor([[[[0.25, 0.75]]]]))
        torch.testing.assert_close(layer.mix(weights[:, None], key[:, None], (0, 1)), torch.tensor([[[[2.25 * math.log(3)]]]]))

    def test_the_dot_products_are_divided_by_the_root_of_the_heads_width(self) -> None:
        layer = CrossAttention([0], 8, heads=2)
        for projection in (layer.query, layer.key):
            projection.weight.data.copy_(torch.eye(8))
        found = layer.scores(torch.ones(1, 1, 8), torch.ones(1, 3, 8), (0, 1))
        torch.testing.assert_close(found, torch.full((1, 2, 1, 3), 2.0))  # 4 / sqrt(4)

    @pytest.mark.parametrize("heads", [1, 2])
    @pytest.mark.parametrize("copies", [[0, 0], [0, 1]])
    @pytest.mark.parametrize(("queries", "keys"), [(2, 7), (7, 2), (3, 3)])
    def test_either_side_may_be_the_longer(self, heads: int, copies: list[int], queries: int, keys: int) -> None:
        torch.manual_seed(0)
        layer = CrossAttention(copies, 6, heads)
        for weight in layer.parameters():
            torch.nn.init.normal_(weight)
        query, key, offsets = torch.randn(3, queries, 6), torch.randn(3, keys, 6), (0, 1, 3)
        weights = layer.scores(query, key, offsets).softmax(-1)
        found = layer.mix(weights[:, None], key[:, None], offsets)[:, 0]
        for row, domain in enumerate([0, 1, 1]):
            np.testing.assert_allclose(found[row].detach().numpy(), plainly(layer, query, key, row, copies[domain]), rtol=2e-4, atol=2e-5)

    @pytest.mark.parametrize("heads", [1, 2])
    @pytest.mark.parametrize("queries", [1, 9])
    @pytest.mark.parametrize("shared", [True, False])
    def test_several_sequences_at_once(self, heads: int, queries: int, shared: bool) -> None:
        torch.manual_seed(0)
        layer = CrossAttention([0], 4, heads)
        weights, key = torch.rand(2, 3, heads, queries, 5), torch.randn(2, 1 if shared else 3, 5, 4)
        found = layer.mix(weights, key, (0, 2))
        for n in range(3):
            own = key[:, :1] if shared else key[:, n : n + 1]
            torch.testing.assert_close(found[:, n], layer.mix(weights[:, n : n + 1], own, (0, 2))[:, 0])

    def test_normalised_scores_do_not_depend_on_the_size_of_queries_and_keys(self) -> None:
        torch.manual_seed(0)
        plain, normed = CrossAttention([0], 4), CrossAttention([0], 4, norm=True)
        normed.load_state_dict(plain.state_dict())
        query, key = torch.randn(1, 2, 4), torch.randn(1, 3, 4)
        found = normed.scores(query, key, (0, 1))
        torch.testing.assert_close(normed.scores(5 * query + 1, 0.2 * key - 3, (0, 1)), found, rtol=1e-3, atol=1e-4)
        by_hand = [(x - x.mean(-1, keepdim=True)) / x.std(-1, keepdim=True, correction=0) for x in (query, key)]
        torch.testing.assert_close(plain.scores(by_hand[0], by_hand[1], (0, 1)), found, rtol=1e-3, atol=1e-4)

    @pytest.mark.parametrize(("dim", "heads"), [(0, 1), (6, 4), (6, 0)])
    def test_heads_must_divide_the_width(self, dim: int, heads: int) -> None:
        with pytest.raises(ConfigError, match="heads that divide dim"):
            CrossAttention([0], dim, heads)
