"""MMoE's equations on hand-worked numbers."""

from __future__ import annotations

import math

import torch
from torch import nn

from isthmus.batch import Batch
from isthmus.layers.features import Inputs
from isthmus.models.mmoe import MMoE
from isthmus.schema import Schema


class _Given(Inputs):
    """Stands at the door of the network with a given x."""

    def __init__(self, schema: Schema, x: list[list[float]]) -> None:
        super().__init__(schema, 1)
        self.x = torch.tensor(x)[:, None]

    def forward(self, batch: Batch) -> torch.Tensor:
        return self.x


def rows(counts: tuple[int, int]) -> Batch:
    """A batch with one candidate per row."""
    n = sum(counts)
    domain = torch.tensor([0] * counts[0] + [1] * counts[1])
    return Batch(torch.full((n,), 2), torch.full((n, 1), 2), domain, (0, counts[0], n))


def test_gate_mixture_and_tower_by_hand(schema: Schema) -> None:
    model = MMoE(schema, experts=2, hidden=(1,), tower=())
    model.inputs = _Given(schema, [[1.0, 2.0], [1.0, 2.0]])
    with torch.no_grad():
        # experts: f_1(x) = relu(x_1) = 1,  f_2(x) = relu(3 x_2) = 6
        model.network.experts.weights[0] = nn.Parameter(torch.tensor([[[1.0, 0.0]], [[0.0, 3.0]]]))
        model.network.experts.biases[0] = nn.Parameter(torch.zeros(2, 1))
        # gates: domain a has logits (0, log 3), so weights (1/4, 3/4); domain b (log 4, 0), so (4/5, 1/5)
        a, b = [[0.0, 0.0], [math.log(3), 0.0]], [[math.log(4), 0.0], [0.0, 0.0]]
        model.network.gate.weight = nn.Parameter(torch.tensor([a, b]))
        # towers: h_a(f) = 2 f + 1,  h_b(f) = 10 f
        model.network.towers.last.weight = nn.Parameter(torch.tensor([[[2.0]], [[10.0]]]))
        model.network.towers.last.bias = nn.Parameter(torch.tensor([[1.0], [0.0]]))
    logit = model(rows((1, 1))).logit
    # a: 1/4 * 1 + 3/4 * 6 = 4.75 -> 10.5;   b: 4/5 * 1 + 1/5 * 6 = 2 -> 20
    torch.testing.assert_close(logit, torch.tensor([[10.5], [20.0]]))


def test_a_domain_trains_its_own_gate_and_tower_and_all_experts(schema: Schema, batch: Batch) -> None:
    model = MMoE(schema)
    alone = Batch(batch.user[:3], batch.item[:3], batch.domain[:3], (0, 3, 3), history=batch.history[:3])
    model(alone).logit.sum().backward()
    for weight in (model.network.gate.weight, model.network.towers.last.weight, *(layer.weight for layer in model.network.towers.layers)):
        assert weight.grad[0].abs().sum() > 0
        assert torch.equal(weight.grad[1], torch.zeros_like(weight[1]))
    assert all((weight.grad.flatten(1).abs().sum(1) > 0).all() for weight in model.network.experts.weights)
