"""STAR's equations on hand-worked numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from isthmus.batch import Batch
from isthmus.layers.networks.star import _PartitionedNorm, _StarLinear
from isthmus.models.star import STAR
from isthmus.schema import Schema


def parameter(values: list) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values))


def test_weights_are_products_and_biases_are_sums() -> None:
    layer = _StarLinear(2, 2, 1)
    layer.shared.weight, layer.shared.bias = parameter([[2.0, -1.0]]), parameter([0.5])
    layer.weight, layer.bias = parameter([[[1.0, 3.0]], [[0.0, -2.0]]]), parameter([[1.0], [-4.0]])
    found = layer(torch.tensor([[1.0, 10.0], [1.0, 10.0]]), (0, 1, 2))
    # a: W* = (2, -3), b* = 1.5: 2 - 30 + 1.5 = -26.5;   b: W* = (0, 2), b* = -3.5: 20 - 3.5 = 16.5
    torch.testing.assert_close(found, torch.tensor([[-26.5], [16.5]]))


def norm_by_hand() -> _PartitionedNorm:
    """gamma 2, beta 1; domain a: 3 and 0.5, domain b: 5 and -1."""
    norm = _PartitionedNorm(2, 1)
    norm.norm.eps = 0.0
    norm.weight, norm.bias = parameter([2.0]), parameter([1.0])
    norm.domain_weight, norm.domain_bias = parameter([[3.0], [5.0]]), parameter([[0.5], [-1.0]])
    return norm


def test_partitioned_normalisation_in_training_uses_each_domains_own_rows() -> None:
    x = torch.tensor([[1.0], [3.0], [100.0], [300.0]])
    # a: mean 2, deviation 1: -1, 1 -> 2*3*z + 1.5;   b: mean 200, deviation 100: -1, 1 -> 2*5*z + 0
    found = norm_by_hand()(x, (0, 2, 4), torch.tensor([0, 0, 1, 1]))
    torch.testing.assert_close(found, torch.tensor([[-4.5], [7.5], [-10.0], [10.0]]))


def test_partitioned_normalisation_after_training_uses_each_domains_running_statistics() -> None:
    norm = norm_by_hand().eval()
    norm.norm.running_mean.copy_(torch.tensor([[4.0], [10.0]]))
    norm.norm.running_var.copy_(torch.tensor([[4.0], [25.0]]))
    # a: (6 - 4)/2 = 1 -> 6 + 1.5;   b: (0 - 10)/5 = -2 -> -20 + 0
    found = norm(torch.tensor([[6.0], [0.0]]), (0, 1, 2), torch.tensor([0, 1]))
    torch.testing.assert_close(found, torch.tensor([[7.5], [-20.0]]))


def test_the_auxiliary_logit_is_added_and_knows_the_domain(schema: Schema) -> None:
    model = STAR(schema, dim=1, hidden=(), auxiliary=(), norm=False)
    x = torch.zeros(2, 1, model.inputs.width)
    x[:, :, 0] = torch.tensor([[2.0], [5.0]])
    model.inputs.forward = lambda _: x
    with torch.no_grad():
        star, aux = model.network.layers[0], model.network.auxiliary.layers[0]
        for weight in (star.shared.weight, star.shared.bias, aux.weight, aux.bias):
            weight.zero_()
        star.shared.weight[0, 0] = 3.0  # s_star = 3 x
        aux.weight[0, :2] = torch.tensor([7.0, 10.0])  # s_aux = 7 * indicator + 10 x
        model.network.indicator.weight.copy_(torch.tensor([[0.0], [1.0], [-1.0]]))
    batch = Batch(torch.tensor([2, 2]), torch.tensor([[2], [2]]), torch.tensor([0, 1]), (0, 1, 2))
    # a: 6 + (7 + 20);   b: 15 + (-7 + 50)
    torch.testing.assert_close(model(batch).logit, torch.tensor([[33.0], [58.0]]))


def test_starts_as_the_shared_network(schema: Schema, batch: Batch) -> None:
    model = STAR(schema, norm=False).eval()
    with torch.no_grad():
        x = model.inputs(batch).flatten(0, 1)
        h: Tensor = x
        for i, layer in enumerate(model.network.layers):
            h = layer.shared(h) if i == len(model.network.layers) - 1 else layer.shared(h).relu()
        domain = batch.domain.repeat_interleave(2)
        aux = model.network.auxiliary(torch.cat([model.network.indicator(domain + 1), x], 1))
        torch.testing.assert_close(model(batch).logit, (h + aux).view(5, 2))


def test_a_domain_trains_the_shared_weights_and_its_own_alone(schema: Schema, batch: Batch) -> None:
    model = STAR(schema)
    alone = Batch(batch.user[:3], batch.item[:3], batch.domain[:3], (0, 3, 3), history=batch.history[:3])
    model(alone).logit.square().sum().backward()
    for layer in model.network.layers:
        assert layer.shared.weight.grad.abs().sum() > 0
        assert layer.weight.grad[0].abs().sum() > 0
        assert torch.equal(layer.weight.grad[1], torch.zeros_like(layer.weight[1]))
    assert torch.equal(model.network.norm.domain_weight.grad[1], torch.zeros(model.inputs.width))
    assert torch.equal(model.network.norm.norm.running_mean[1], torch.zeros(model.inputs.width)), "an absent domain keeps its statistics"
