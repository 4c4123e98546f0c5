"""CoNet: by hand, against MLP++ where nothing crosses, and against loops over domains."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from isthmus.batch import Batch
from isthmus.errors import ConfigError
from isthmus.layers.networks.conet import CoNetNetwork
from isthmus.layers.networks.mlp_plus_plus import MLPPlusPlusNetwork
from isthmus.models.conet import CoNet
from isthmus.models.mlp_plus_plus import MLPPlusPlus
from isthmus.schema import Schema


def set_(weight: Tensor, values: object) -> None:
    with torch.no_grad():
        weight.copy_(torch.tensor(values))


def test_by_hand() -> None:
    net = CoNetNetwork(2, 1, out=1, hidden=(1, 1))
    set_(net.first.weights[0], [[[1.0]], [[2.0]]])
    set_(net.first.biases[0], [[0.0], [1.0]])
    set_(net.layers[0].weight, [[[3.0]], [[1.0]]])
    set_(net.layers[0].bias, [[1.0], [0.0]])
    set_(net.cross[0].weight, [[10.0]])  # both ways
    set_(net.out.weight, [[[1.0]], [[2.0]]])
    set_(net.out.bias, [[0.0], [0.5]])
    # x = 1: a_1 = 1, a_2 = 3.  Domain 1: 3 * 1 + 1 + 10 * 3 = 34.  Domain 2: 1 * 3 + 10 * 1 = 13, times 2 + .5 = 26.5
    torch.testing.assert_close(net(torch.ones(2, 1), (0, 1, 2)), torch.tensor([[34.0], [26.5]]))
    assert net.transfer() == 10


@pytest.mark.parametrize("hidden", [(5,), (5, 4), (5, 4, 3)])
def test_without_crossing_it_is_two_separate_networks(hidden: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    net, apart = CoNetNetwork(2, 3, out=2, hidden=hidden), MLPPlusPlusNetwork(2, 3, out=2, hidden=hidden)
    plain = apart.networks
    with torch.no_grad():
        for h in net.cross.parameters():
            h.zero_()
        plain.layers[0].weight.copy_(net.first.weights[0])
        plain.layers[0].bias.copy_(net.first.biases[0])
        for mine, theirs in zip(plain.layers[1:], net.layers, strict=True):
            mine.load_state_dict(theirs.state_dict())
        plain.last.load_state_dict(net.out.state_dict())
    x, offsets = torch.randn(7, 3), (0, 3, 7)
    torch.testing.assert_close(net(x, offsets), apart(x, offsets))
    for d, (start, end) in enumerate(((0, 3), (3, 7))):  # and each of them is a plain network
        torch.testing.assert_close(net(x, offsets)[start:end], plain.specialise(d)(x[start:end]))


@pytest.mark.parametrize("domains", [1, 3])
def test_several_domains_written_out(domains: int) -> None:
    torch.manual_seed(0)
    net, x = CoNetNetwork(domains, 3, out=1, hidden=(5, 4, 3)), torch.randn(6, 3)
    offsets = (0, 6) if domains == 1 else (0, 2, 2, 6)
    h = [torch.relu(x @ net.first.weights[0][d].T + net.first.biases[0][d]) for d in range(domains)]
    for layer, cross in zip(net.layers, net.cross, strict=True):
        others = [sum((h[e] for e in range(domains) if e != d), torch.zeros_like(h[d])) / max(domains - 1, 1) for d in range(domains)]
        h = [torch.relu(h[d] @ layer.weight[d].T + layer.bias[d] + others[d] @ cross.weight.T) for d in range(domains)]
    every = torch.stack([h[d] @ net.out.weight[d].T + net.out.bias[d] for d in range(domains)], 1)
    domain = torch.tensor([0] * 6 if domains == 1 else [0, 0, 2, 2, 2, 2])
    torch.testing.assert_close(net(x, offsets), every[torch.arange(6), domain])


def test_the_sparse_variant_adds_what_crosses_in_training_alone(schema: Schema, batch: Batch) -> None:
    model = CoNet(schema, sparse=0.5, id_dropout=0.0)
    set_(model.network.cross[0].weight, [[-0.25] * 64] * 32)
    assert model(batch).extra["sparse"].item() == pytest.approx(0.5 * 0.25 * 64 * 32)
    assert model.eval()(batch).extra == {}
    assert CoNet(schema)(batch).extra == {}
    with pytest.raises(ConfigError, match="0 or more"):
        CoNet(schema, sparse=-1.0)


def test_mlp_plus_plus_trains_the_domains_own_network_and_shared_embeddings(schema: Schema, batch: Batch) -> None:
    model = MLPPlusPlus(schema)
    alone = Batch(batch.user[:3], batch.item[:3], batch.domain[:3], (0, 3, 3), history=batch.history[:3])
    model(alone).logit.sum().backward()
    for layer in (*model.network.networks.layers, model.network.networks.last):
        assert layer.weight.grad[0].abs().sum() > 0
        assert torch.equal(layer.weight.grad[1], torch.zeros_like(layer.weight[1]))
    assert model.inputs.user.table.weight.grad.abs().sum() > 0


def test_conet_trains_every_networks_first_layers(schema: Schema, batch: Batch) -> None:
    model = CoNet(schema)
    alone = Batch(batch.user[:3], batch.item[:3], batch.domain[:3], (0, 3, 3), history=batch.history[:3])
    model(alone).logit.sum().backward()
    assert (model.network.first.weights[0].grad.flatten(1).abs().sum(1) > 0).all()  # the other one's activations cross
    assert torch.equal(model.network.layers[0].weight.grad[1], torch.zeros(32, 64))
