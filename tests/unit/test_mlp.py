"""The plain MLP."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from isthmus.errors import ConfigError
from isthmus.layers.dropout import Dropout
from isthmus.layers.mlp import MLP


def test_by_hand() -> None:
    net = MLP(2, (2,), out=1)
    first, last = (m for m in net.layers if isinstance(m, nn.Linear))
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, 2.0], [-1.0, 0.0]]))
        first.bias.copy_(torch.tensor([0.5, 0.0]))
        last.weight.copy_(torch.tensor([[2.0, 100.0]]))
        last.bias.copy_(torch.tensor([-1.0]))
    # relu(1 + 6 + 0.5) = 7.5, relu(-1) = 0; 2 * 7.5 - 1 = 14
    assert net(torch.tensor([[1.0, 3.0]])).tolist() == [[14.0]]


def test_widths() -> None:
    x = torch.randn(3, 5)
    assert MLP(5, (4, 2))(x).shape == (3, MLP(5, (4, 2)).width) == (3, 2)
    assert MLP(5, (4, 2), out=7)(x).shape == (3, MLP(5, (4, 2), out=7).width) == (3, 7)
    assert MLP(5, (), out=1)(x).shape == (3, 1)
    assert torch.equal(MLP(5, ())(x), x)
    assert (MLP(5, (4,))(x) >= 0).all()  # without an output layer the last activation is the output


def test_norm_and_activation() -> None:
    kinds = [type(m) for m in MLP(5, (4,), norm="batch", dropout=0.5, activation=lambda width: nn.GELU(), out=1).layers]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.GELU, Dropout, nn.Linear]
    assert nn.LayerNorm in [type(m) for m in MLP(5, (4,), norm="layer").layers]
    with pytest.raises(ConfigError, match="group"):
        MLP(5, (4,), norm="group")


def test_dropout_only_in_training() -> None:
    net = MLP(5, (400,), dropout=0.5)
    x = torch.randn(3, 5)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))
