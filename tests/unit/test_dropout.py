"""Dropout: how much is dropped, what becomes of the rest, and what gradients see."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from isthmus.errors import ConfigError
from isthmus.layers.dropout import Dropout


@pytest.mark.parametrize("share", [0.1, 0.5, 0.93])
def test_the_share_asked_for_is_dropped_and_the_mean_stays(share: float) -> None:
    torch.manual_seed(0)
    n = 400_000
    out = Dropout(share).train()(torch.ones(n // 8, 8))
    dropped = (out == 0).double()
    assert abs(dropped.mean().item() - share) < 4 * math.sqrt(share * (1 - share) / n)
    torch.testing.assert_close(out[out != 0], torch.full(((out != 0).sum(),), 1 / (1 - share)))
    columns = dropped.mean(0)
    assert (columns - share).abs().max() < 5 * math.sqrt(share * (1 - share) / (n / 8)), "the numbers that share a draw are alike"
    covariance = torch.cov(dropped.T)
    off = covariance - torch.diag(covariance.diagonal())
    assert off.abs().max() < 6 * share * (1 - share) / math.sqrt(n / 8), "and independent"


def test_gradients_go_where_numbers_went() -> None:
    torch.manual_seed(0)
    x = torch.randn(3, 5, 7, requires_grad=True)
    out = Dropout(0.4).train()(x)
    out.sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, out.detach() / x.detach())


def test_nothing_is_dropped_where_nothing_is_asked_for() -> None:
    x = torch.randn(4, 4)
    assert Dropout(0.5).eval()(x) is x
    assert Dropout(0.0).train()(x) is x
    assert Dropout(0.3).train()(torch.zeros(0, 4)).shape == (0, 4)


def test_the_same_seed_drops_the_same() -> None:
    drop = nn.Sequential(Dropout(0.5), Dropout(0.5)).train()
    torch.manual_seed(3)
    first = drop(torch.ones(99))
    torch.manual_seed(3)
    assert torch.equal(drop(torch.ones(99)), first)
    assert not torch.equal(drop(torch.ones(99)), first)


@pytest.mark.parametrize("share", [-0.1, 1.0, math.nan])
def test_other_shares_are_refused(share: float) -> None:
    with pytest.raises(ConfigError, match="dropout"):
        Dropout(share)
