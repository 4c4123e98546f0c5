"""PLE's equations: a CGC layer by hand, and several levels against a reference written out row by row."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from isthmus.batch import Batch
from isthmus.errors import ConfigError
from isthmus.layers.networks.ple import _Level
from isthmus.models.ple import PLE
from isthmus.schema import Schema


def parameter(values: list) -> nn.Parameter:
    return nn.Parameter(torch.tensor(values))


def test_cgc_by_hand() -> None:
    level = _Level(2, 1, (1,), own=1, shared=2, dropout=0.0, last=True)
    # at x = 2: own experts a: 3x = 6, b: 5x = 10; shared: x = 2 and x + 1 = 3
    level.own[0].layers[0].weight, level.own[0].layers[0].bias = parameter([[[3.0]], [[5.0]]]), parameter([[0.0], [0.0]])
    level.shared.weights[0], level.shared.biases[0] = parameter([[[1.0]], [[1.0]]]), parameter([[0.0], [1.0]])
    # gates over (own, shared 1, shared 2) at x = 2: a: logits (log 2, 0, 0) -> (2, 1, 1)/4; b: (0, 0, log 3) -> (1, 1, 3)/5
    half = [math.log(2) / 2, math.log(3) / 2]
    level.gate.weight = parameter([[[half[0]], [0.0], [0.0]], [[0.0], [0.0], [half[1]]]])
    x = torch.full((2, 1), 2.0)
    mixed, shared = level(x, x, (0, 1, 2))
    # a: (2*6 + 2 + 3)/4 = 4.25;   b: (10 + 2 + 3*3)/5 = 4.2
    torch.testing.assert_close(mixed, torch.tensor([[4.25], [4.2]]))
    assert torch.equal(shared, x), "the last level has no shared gate"


def test_shared_gate_by_hand() -> None:
    level = _Level(2, 1, (1,), own=1, shared=1, dropout=0.0, last=False)
    # own experts read the own input 1: a: 4, b: 8; the shared expert reads the shared input 2: 6
    level.own[0].layers[0].weight, level.own[0].layers[0].bias = parameter([[[4.0]], [[8.0]]]), parameter([[0.0], [0.0]])
    level.shared.weights[0], level.shared.biases[0] = parameter([[[3.0]]]), parameter([[0.0]])
    # shared gate at 2: the shared expert's logit is 0, the own one's log 3 in a and 0 in b
    level.shared_gate.weight = parameter([[0.0]])
    level.shared_gate_own.weight = parameter([[[math.log(3) / 2]], [[0.0]]])
    _, shared = level(torch.full((2, 1), 1.0), torch.full((2, 1), 2.0), (0, 1, 2))
    # a: (3*4 + 6)/4 = 4.5;   b: (8 + 6)/2 = 7
    torch.testing.assert_close(shared, torch.tensor([[4.5], [7.0]]))


def paper_level(level: _Level, own: Tensor, shared: Tensor, d: int, domains: int) -> tuple[Tensor, Tensor]:
    """One row through ALL domains' experts as in the paper; the shared gate masks those the row does not own."""
    common = [(w @ shared + b).relu() for w, b in zip(level.shared.weights[0], level.shared.biases[0], strict=True)]
    every = [[(e.layers[0].weight[k] @ own + e.layers[0].bias[k]).relu() for e in level.own] for k in range(domains)]
    mixed = (level.gate.weight[d] @ own).softmax(0) @ torch.stack([*every[d], *common])
    if level.shared_gate is None:
        return mixed, shared
    logits = [level.shared_gate_own.weight[k] @ shared + (0.0 if k == d else -torch.inf) for k in range(domains)]
    gate = torch.cat([*logits, level.shared_gate.weight @ shared]).softmax(0)
    return mixed, gate @ torch.stack([e for k in range(domains) for e in every[k]] + common)


def test_levels_equal_the_papers_gate_with_absent_experts_masked(schema: Schema, batch: Batch) -> None:
    model = PLE(schema, levels=3, own=2, shared=2, hidden=(5,), tower=()).eval()
    with torch.no_grad():
        x = torch.randn_like(model.inputs(batch))
        model.inputs.forward = lambda _: x
        found = model(batch).logit
        for row in range(5):
            d = int(batch.domain[row])
            for column in range(2):
                own = shared = x[row, column]
                for level in model.network.levels:
                    own, shared = paper_level(level, own, shared, d, 2)
                expected = model.network.towers.last.weight[d] @ own + model.network.towers.last.bias[d]
                torch.testing.assert_close(found[row, column], expected[0])


def test_a_domain_never_touches_anothers_experts(schema: Schema, batch: Batch) -> None:
    model = PLE(schema)
    alone = Batch(batch.user[:3], batch.item[:3], batch.domain[:3], (0, 3, 3), history=batch.history[:3])
    model(alone).logit.sum().backward()
    for level in model.network.levels:
        for weight in (level.gate.weight, *(e.layers[0].weight for e in level.own)):
            assert weight.grad[0].abs().sum() > 0
            assert torch.equal(weight.grad[1], torch.zeros_like(weight[1]))


def test_one_extraction_network_and_a_cgc_by_default(schema: Schema) -> None:
    first, last = PLE(schema).network.levels
    assert first.shared_gate is not None
    assert last.shared_gate is None


@pytest.mark.parametrize("setting", ["levels", "own", "shared"])
def test_refuses_a_level_without_experts(schema: Schema, setting: str) -> None:
    with pytest.raises(ConfigError, match=f"{setting} = 0"):
        PLE(schema, **{setting: 0})
