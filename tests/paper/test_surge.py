"""SURGE: the graph and its pooling by hand and node by node, what padding must not touch, and the whole score written out."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from isthmus.batch import Batch
from isthmus.errors import ConfigError
from isthmus.layers.evolution import GatedUnit
from isthmus.layers.interest_graph import InterestGraph, assignment_terms, augru, similarity
from isthmus.layers.target_attention import TargetAttention
from isthmus.models.surge import SURGE
from isthmus.schema import PADDING, Schema

REAL = torch.tensor([[False, True, True, True, True, True], [False] * 5 + [True], [False] * 6, [True] * 6])


@pytest.fixture
def graph() -> InterestGraph:
    torch.manual_seed(0)
    return InterestGraph(4, clusters=3, heads=2, edges=0.45, hidden=5)


@pytest.fixture
def events() -> tuple[Tensor, Tensor]:
    """Events (4, 6, 4), padding too is not 0, and candidates (4, 2, 4)."""
    torch.manual_seed(1)
    return torch.randn(4, 6, 4), torch.randn(4, 2, 4)


def slow_adjacency(graph: InterestGraph, x: Tensor) -> Tensor:
    """Nodes (n, width) without padding."""
    n = len(x)
    similar = torch.zeros(n, n)
    for i, j in itertools.product(range(n), repeat=2):
        heads = [torch.cosine_similarity(w * x[i], w * x[j], dim=0) for w in graph.metric]
        similar[i, j] = sum(heads, torch.zeros(())) / len(heads)
    least = sorted(similar.flatten().tolist(), reverse=True)[math.ceil(graph.edges * n * n) - 1]
    return ((similar >= least - 1e-5) | torch.eye(n, dtype=torch.bool)).float()


def score(unit: TargetAttention, event: Tensor, query: Tensor) -> Tensor:
    assert unit.transfer is not None
    return unit.rest((unit.event(event) + unit.query(query) + unit.both(unit.transfer(event) * query))[None])[0, 0]


def slow_fuse(graph: InterestGraph, x: Tensor, a: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """Nodes (n, width) and one candidate -> h' and gamma."""
    n = len(x)
    near = [[j for j in range(n) if a[i, j]] for i in range(n)]
    alpha = torch.stack([score(graph.cluster, x[j], x[near[j]].mean(0)) for j in range(n)])
    beta = torch.stack([score(graph.asked, x[j], query) for j in range(n)])
    fused = []
    for i in range(n):
        weight = torch.stack([alpha[j] + beta[j] for j in near[i]]).softmax(0)
        total = sum((w * x[j] for w, j in zip(weight, near[i], strict=True)), torch.zeros(x.shape[1]))
        fused.append(torch.nn.functional.leaky_relu(graph.message.weight @ total + x[i]))
    return torch.stack(fused), beta.softmax(0)


def slow_pool(graph: InterestGraph, fused: Tensor, gamma: Tensor, a: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """h*, gamma* and S."""
    n, m = len(fused), len(graph.assign.weight)
    near = [torch.stack([fused[j] for j in range(n) if a[i, j]]).sum(0) for i in range(n)]
    s = torch.stack([(graph.assign.weight @ x).softmax(0) for x in near])
    pooled = [torch.stack([s[i, k] * torch.cat([fused[i], gamma[i : i + 1]]) for i in range(n)]).sum(0) for k in range(m)]
    vector, weight = torch.stack(pooled).split([fused.shape[1], 1], 1)
    return vector, weight[:, 0], s


def slow_augru(unit: GatedUnit, x: Tensor, attention: Tensor) -> Tensor:
    state = torch.zeros(unit.size)
    wu, wr, wn = unit.input.weight.chunk(3)
    bu, br, bn = unit.input.bias.chunk(3)
    uu, ur, un = unit.state.weight.chunk(3)
    for e, a in zip(x, attention, strict=True):
        update = a * torch.sigmoid(wu @ e + bu + uu @ state)
        reset = torch.sigmoid(wr @ e + br + ur @ state)
        state = (1 - update) * state + update * torch.tanh(wn @ e + bn + reset * (un @ state))
    return state


def slow_terms(s: Tensor, a: Tensor) -> list[float]:
    (n, m), s = s.shape, s.detach()
    same = math.sqrt(sum(float(a[i, j] - s[i] @ s[j]) ** 2 for i, j in itertools.product(range(n), repeat=2)))
    single = -sum(float(s[i, k] * s[i, k].log()) for i, k in itertools.product(range(n), range(m))) / n
    means = [sum(float(s[i, k]) * (i + 1) * m / n for i in range(n)) / float(s[:, k].sum()) for k in range(m)]
    return [same, single, math.sqrt(sum((mean - k) ** 2 for k, mean in enumerate(means, 1)))]


def test_the_graph_by_hand() -> None:
    x = torch.tensor([[[9.0, 9.0], [1.0, 0.0], [2.0, 0.0], [0.0, 1.0]]])  # padding; two alike; another
    real = torch.tensor([[False, True, True, True]])
    two = torch.tensor([[0.0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 1]])
    for edges, expected in ((5 / 9, two), (0.2, two), (0.6, two.new_tensor([0, 1, 1, 1]).outer(two.new_tensor([0, 1, 1, 1])))):
        found = InterestGraph(2, heads=1, edges=edges).adjacency(x, real)[0]
        torch.testing.assert_close(found, expected, msg=f"{edges}: ties stay together")
    nowhere = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]])  # the second one is like nothing, not even itself
    torch.testing.assert_close(InterestGraph(2, edges=0.2).adjacency(nowhere, torch.ones(1, 2) > 0), torch.eye(2)[None])


def test_an_item_that_comes_twice_is_joined_whatever_rounding_does() -> None:
    torch.manual_seed(0)
    x = torch.randn(300, 5, 7)
    x[:, 3] = x[:, 1]
    a = InterestGraph(7, heads=3, edges=0.1).adjacency(x, torch.ones(300, 5, dtype=torch.bool))  # 3 of 7 pairs that are all alike
    expected = torch.eye(5)
    expected[1, 3] = expected[3, 1] = 1.0
    torch.testing.assert_close(a, expected.expand_as(a))


def test_fusing_by_hand() -> None:
    graph = InterestGraph(2, clusters=2, heads=1)
    with torch.no_grad():
        for unit in (graph.cluster, graph.asked):
            for weight in unit.rest.parameters():
                weight.zero_()  # all scores alike: a softmax is a mean
        graph.message.weight.copy_(torch.tensor([[2.0, 0.0], [0.0, 1.0]]))
        graph.assign.weight.copy_(torch.tensor([[0.0, 0.0], [0.0, math.log(2.0)]]))
    x = torch.tensor([[[1.0, 0.0], [3.0, 0.0], [0.0, 1.0]]])
    a = torch.tensor([[[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]]])
    fused, gamma = graph.fuse(x, a, torch.zeros(1, 1, 2))
    torch.testing.assert_close(fused[0, 0], torch.tensor([[5.0, 0.0], [7.0, 0.0], [0.0, 2.0]]))  # 2 * mean(1, 3) + 1, + 3; 1 + 1
    torch.testing.assert_close(gamma[0, 0], torch.full((3,), 1 / 3))
    pooled = graph.pool(fused, gamma, a)
    torch.testing.assert_close(pooled.assignment[0, 0], torch.tensor([[0.5, 0.5], [0.5, 0.5], [0.2, 0.8]]))  # e^0 to e^(2 log 2)
    torch.testing.assert_close(pooled.vector[0, 0], torch.tensor([[6.0, 0.4], [6.0, 1.6]]))
    torch.testing.assert_close(pooled.score[0, 0], torch.tensor([0.4, 0.6]))


def test_node_by_node(graph: InterestGraph, events: tuple[Tensor, Tensor]) -> None:
    x, query = events
    a = graph.adjacency(x, REAL)
    fused, gamma = graph.fuse(x, a, query)
    pooled = graph.pool(fused, gamma, a)
    torch.testing.assert_close(a, a.transpose(1, 2))
    terms = []
    for b, c in itertools.product(range(4), range(2)):
        own = REAL[b]
        nothing = [a[b, ~own], a[b, :, ~own], fused[b, c, ~own], gamma[b, c, ~own], pooled.assignment[b, c, ~own]]
        assert not any(value.any() for value in nothing)
        if not own.any():
            assert not torch.cat([pooled.vector[b, c].flatten(), pooled.score[b, c]]).any()
            continue
        edges = slow_adjacency(graph, x[b, own])
        nodes, weight = slow_fuse(graph, x[b, own], edges, query[b, c])
        vector, weights, s = slow_pool(graph, nodes, weight, edges)
        torch.testing.assert_close(a[b][own][:, own], edges)
        torch.testing.assert_close(fused[b, c, own], nodes)
        torch.testing.assert_close(gamma[b, c, own], weight)
        torch.testing.assert_close(pooled.assignment[b, c, own], s)
        torch.testing.assert_close(pooled.vector[b, c], vector)
        torch.testing.assert_close(pooled.score[b, c], weights)
        terms.append(slow_terms(s, edges))
    found = assignment_terms(pooled.assignment, a)
    assert list(found) == ["same_mapping", "single_affiliation", "relative_position"]
    torch.testing.assert_close(torch.stack(list(found.values())), torch.tensor(terms).mean(0), rtol=1e-4, atol=1e-4)


def test_the_terms_vanish_where_all_is_clear() -> None:
    s = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    terms = assignment_terms(s[None, None], (s @ s.T)[None])
    assert terms["same_mapping"] < 1e-5
    assert terms["single_affiliation"] < 1e-5
    swapped = assignment_terms(s.flip(1)[None, None], (s @ s.T)[None])  # events lie at 1/2, 1, 3/2, 2: halves at 3/4 and 7/4
    assert terms["relative_position"].item() == pytest.approx(math.hypot(1 / 4, 1 / 4))
    assert swapped["relative_position"].item() == pytest.approx(math.hypot(3 / 4, 5 / 4))


def test_similarity_learns_from_edges_that_are_there(graph: InterestGraph, events: tuple[Tensor, Tensor]) -> None:
    x = events[0].requires_grad_()
    a = graph.adjacency(x, REAL)
    found = torch.autograd.grad((a * torch.arange(144.0).view(4, 6, 6)).sum(), graph.metric, retain_graph=True)[0]
    there = torch.arange(144.0).view(4, 6, 6) * a.detach()
    torch.testing.assert_close(found, torch.autograd.grad((similarity(x, graph.metric) * there).sum(), graph.metric)[0])
    assert found.abs().max() > 0
    assert not torch.autograd.grad(a.sum(), x)[0][~REAL].any()


def test_extreme_scores_stay_finite(graph: InterestGraph, events: tuple[Tensor, Tensor]) -> None:
    x, query = events[0].requires_grad_(), events[1]
    a = graph.adjacency(x, REAL)
    fused, gamma = graph.fuse(x, a, 1e4 * query)
    pooled = graph.pool(1e3 * fused, gamma, a)
    total = pooled.vector.sum() + pooled.score.square().sum() + sum(assignment_terms(pooled.assignment, a).values())
    total.backward()
    assert total.isfinite()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in (x, *graph.parameters()))


@pytest.mark.parametrize("length", [0, 1])
def test_fewer_events_than_interests(graph: InterestGraph, length: int) -> None:
    x, query = torch.randn(2, length, 4), torch.randn(2, 3, 4)
    a = graph.adjacency(x, torch.ones(2, length, dtype=torch.bool))
    fused, gamma = graph.fuse(x, a, query)
    pooled = graph.pool(fused, gamma, a)
    torch.testing.assert_close(pooled.score.sum(2), torch.full((2, 3), float(length)))
    assert fused.shape == (2, 3, length, 4)
    assert augru(GatedUnit(4, 4), pooled.vector, pooled.score).shape == (2, 3, 4)
    assert all(term.isfinite() for term in assignment_terms(pooled.assignment, a).values())


def test_the_score_written_out(schema: Schema, batch: Batch) -> None:
    torch.manual_seed(0)
    model = SURGE(schema, dim=3, clusters=2, heads=2, attention=4, id_dropout=0.0).eval()
    level = torch.tensor([-1.0, 2.0])
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.3 * torch.randn_like(weight)
        model.fields.users.table.weight[PADDING] = model.fields.items.table.weight[PADDING] = 0.0
        model.levels.level.copy_(level)
    batch.history = torch.tensor([[0, 0, 2, 5, 2], [0, 3, 4, 5, 2], [0] * 5, [0, 0, 0, 0, 5], [0, 0, 0, 2, 3]])
    expected, graph = torch.zeros(5, 2), model.graph
    for b, c in itertools.product(range(5), range(2)):
        x = model.fields.item(batch.history[b][batch.history[b] != PADDING]).flatten(1)
        query, evolved, readout = model.fields.item(batch.item[b, c]).flatten(), torch.zeros(3), torch.zeros(3)
        if len(x):
            edges = slow_adjacency(graph, x)
            fused, gamma = slow_fuse(graph, x, edges, query)
            vector, weights, _ = slow_pool(graph, fused, gamma, edges)
            evolved, readout = slow_augru(model.unit, vector, weights), gamma @ fused
        parts = [model.fields.row(batch)[b].flatten(), query, evolved, readout, readout * query]
        expected[b, c] = level[batch.domain[b]] + model.mlp(torch.cat(parts)[None])[0, 0]
    torch.testing.assert_close(model(batch).logit, expected, rtol=1e-4, atol=1e-4)
    batch.history = torch.zeros(5, 0, dtype=torch.int64)
    torch.testing.assert_close(model(batch).logit[2], expected[2])  # no column is no event


def test_terms_are_for_training_and_weighed(schema: Schema, batch: Batch) -> None:
    torch.manual_seed(0)
    model = SURGE(schema, regular=0.5, id_dropout=0.0)
    once = model(batch).extra
    assert list(once) == ["same_mapping", "single_affiliation", "relative_position"]
    assert SURGE(schema, regular=0.0)(batch).extra == model.eval()(batch).extra == {}
    model.train().regular = 1.0
    assert all(value.item() == pytest.approx(2 * once[name].item()) for name, value in model(batch).extra.items())


def test_refuses(schema: Schema) -> None:
    settings: list[dict[str, Any]] = [{"clusters": 0}, {"heads": 0}, {"attention": 0}, {"edges": 0.0}, {"edges": 1.5}, {"regular": -1.0}]
    for wrong in settings:
        with pytest.raises(ConfigError, match=r"edges|clusters|regular"):
            SURGE(schema, **wrong)
