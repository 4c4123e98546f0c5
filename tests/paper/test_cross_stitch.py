"""The cross-stitch unit: its start, one unit by hand, and the whole network against one written out row by row."""

from __future__ import annotations

import torch
from torch import nn

from isthmus.batch import Batch
from isthmus.models.cross_stitch import CrossStitch
from isthmus.schema import Domain, Entity, Schema


def parameter(values: list) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values))


def schema_of(domains: int) -> Schema:
    names = tuple(Domain(f"d{i}") for i in range(domains))
    return Schema(Entity("user", (), 6, 6), Entity("item", (), 6, 6), names, label="click")


def test_units_start_near_the_identity_and_their_rows_sum_to_one() -> None:
    for domains, other in ((3, 0.05), (2, 0.1)):
        for alpha in CrossStitch(schema_of(domains)).network.alpha:
            assert torch.equal(alpha.diagonal(), torch.full((domains,), 0.9))
            torch.testing.assert_close(alpha[0, 1].item(), other)
            torch.testing.assert_close(alpha.sum(1), torch.ones(domains))
    assert all(torch.equal(alpha, torch.ones(1, 1)) for alpha in CrossStitch(schema_of(1)).network.alpha)


def test_unit_by_hand(schema: Schema) -> None:
    model = CrossStitch(schema, dim=1, hidden=(1,))
    x = torch.zeros(2, 1, model.inputs.width)
    x[:, :, 0] = 2.0
    model.inputs.forward = lambda _: x
    with torch.no_grad():
        model.network.first.weights[0].zero_()
        model.network.first.weights[0][:, 0, 0] = torch.tensor([1.0, 5.0])  # x_a = 2, x_b = 10
        model.network.first.biases[0].zero_()
        model.network.alpha[0].copy_(torch.tensor([[0.5, 0.25], [-1.0, 2.0]]))
        model.network.out.weight.copy_(torch.tensor([[[10.0]], [[1.0]]]))
        model.network.out.bias.copy_(torch.tensor([[1.0], [0.0]]))
    batch = Batch(torch.tensor([2, 2]), torch.tensor([[2], [2]]), torch.tensor([0, 1]), (0, 1, 2))
    # x~_a = 0.5*2 + 0.25*10 = 3.5 -> 10*3.5 + 1 = 36;   x~_b = -2 + 20 = 18 -> 18
    torch.testing.assert_close(model(batch).logit, torch.tensor([[36.0], [18.0]]))


def test_network_equals_stitching_every_network_at_every_layer(schema: Schema, batch: Batch) -> None:
    model = CrossStitch(schema, hidden=(6, 5, 4)).eval()
    with torch.no_grad():
        for alpha in model.network.alpha:
            alpha.copy_(torch.randn(2, 2))
        x = torch.randn_like(model.inputs(batch))
        model.inputs.forward = lambda _: x
        found = model(batch).logit
        for row in range(5):
            for column in range(2):
                h = [(model.network.first.weights[0][k] @ x[row, column] + model.network.first.biases[0][k]).relu() for k in range(2)]
                for number, alpha in enumerate(model.network.alpha):
                    h = [alpha[k, 0] * h[0] + alpha[k, 1] * h[1] for k in range(2)]
                    if number < 2:
                        layer = model.network.deeper[number]
                        h = [(h[k] @ layer.weight[k] + layer.bias[k, 0]).relu() for k in range(2)]
                d = int(batch.domain[row])
                torch.testing.assert_close(found[row, column], (model.network.out.weight[d] @ h[d] + model.network.out.bias[d])[0])
