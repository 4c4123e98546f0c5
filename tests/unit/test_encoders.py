"""Encoders of sequences: shapes, what they refuse, no look ahead, and each against a slow one, number by number."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from isthmus.errors import ConfigError
from isthmus.layers.encoders import available, make_encoder, settings
from isthmus.layers.encoders._base import Encoder, Places
from isthmus.layers.encoders.caser import Convolutions
from isthmus.layers.encoders.dien import InterestStates
from isthmus.layers.encoders.gru4rec import Recurrent
from isthmus.layers.encoders.sasrec import SelfAttention
from isthmus.layers.encoders.sli_rec import LongAndShort
from isthmus.layers.encoders.surge import FusedInterests

NAMES = sorted(available())
each = pytest.mark.parametrize("name", NAMES)
Vector = list[float]


def shaken(name: str, dim: int = 4, **args: Any) -> Encoder:
    torch.manual_seed(0)
    encoder = make_encoder(name, dim, args)
    with torch.no_grad():
        for weight in encoder.parameters():
            weight += 0.3 * torch.randn_like(weight)
    return encoder.eval()


@torch.no_grad()
def states(encoder: nn.Module, x: Tensor) -> Tensor:
    return encoder(x)


def test_the_encoders_are_the_files() -> None:
    assert {"caser", "dien", "gru4rec", "sasrec", "sli_rec", "surge"} <= set(NAMES)
    assert not any(name.startswith("_") for name in NAMES)
    found = {
        "caser": Convolutions,
        "dien": InterestStates,
        "gru4rec": Recurrent,
        "sasrec": SelfAttention,
        "sli_rec": LongAndShort,
        "surge": FusedInterests,
    }
    assert all(type(make_encoder(name, 4)) is kind for name, kind in found.items())


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("sasrek", {}, "did you mean 'sasrec'"),
        ("_base", {}, "unknown encoder"),
        ("caser", {"windows": 3}, "did you mean 'window'"),
        ("gru4rec", {"dim": 3}, "no hyper-parameter 'dim'"),
        ("sasrec", {"window": 3}, "no hyper-parameter 'window'"),
        ("sasrec", {"heads": 3}, "heads that divide dim"),
        ("sasrec", {"heads": 0}, "heads that divide dim"),
        ("sasrec", {"length": -1}, "0 or more places"),
        ("sasrec", {"blocks": 0}, "1 or more blocks"),
        ("gru4rec", {"layers": 0}, "1 or more"),
        ("gru4rec", {"hidden": 0}, "1 or more"),
        ("caser", {"window": 0}, "1 or more each"),
        ("caser", {"horizontal": 0}, "1 or more each"),
        ("caser", {"vertical": 0}, "1 or more each"),
        ("surge", {"heads": 0}, "1 or more of each"),
        ("surge", {"hidden": 0}, "1 or more of each"),
        *(("surge", {"edges": share}, "a share above 0") for share in (0.0, 1.1, math.nan)),
        *((name, {"dropout": share}, "a share from 0") for name in NAMES for share in (1.0, -0.1, math.nan)),
    ],
)
def test_what_cannot_be_is_refused(name: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_encoder(name, 4, args)


@each
@pytest.mark.parametrize("length", [1, 2, 7, 60])
def test_a_state_for_each_event(name: str, length: int) -> None:
    found = states(shaken(name), x := torch.randn(3, length, 4))
    assert found.shape == x.shape
    assert found.isfinite().all()


@each
def test_a_state_depends_on_the_events_up_to_its_own_alone(name: str) -> None:
    encoder, x = shaken(name), torch.randn(2, 9, 4)
    found = states(encoder, x)
    for slot in range(9):
        changed = x.clone()
        changed[0, slot:] = 3 * torch.randn(9 - slot, 4)
        other = states(encoder, changed)
        torch.testing.assert_close(other[0, :slot], found[0, :slot], rtol=0, atol=1e-6)
        torch.testing.assert_close(other[1], found[1], rtol=0, atol=1e-6)
        assert (other[0, slot] - found[0, slot]).abs().max() > 1e-3, "its own it does know"
        torch.testing.assert_close(states(encoder, x[:, : slot + 1]), found[:, : slot + 1], rtol=1e-5, atol=1e-6)


@each
def test_earlier_events_count(name: str) -> None:
    encoder, x = shaken(name), torch.randn(1, 6, 4)
    reach = 5 if name == "caser" else 6  # its window
    for slot in range(6):
        changed = x.clone()
        changed[0, slot] = -changed[0, slot].flip(0)
        difference = (states(encoder, changed)[0, 5] - states(encoder, x)[0, 5]).abs().max().item()
        assert (difference > 1e-4) is (slot >= 6 - reach), slot


@each
def test_every_weight_learns_and_dropout_is_for_training(name: str) -> None:
    encoder, x = shaken(name, dim=8, dropout=0.5), torch.randn(8, 7, 8)
    assert torch.equal(states(encoder, x), states(encoder, x))
    encoder.train()
    assert not torch.equal(states(encoder, x), states(encoder, x))
    (encoder.states(x, torch.rand(8, 7)) * torch.randn(8, 7, 8)).sum().backward()
    assert [key for key, weight in encoder.named_parameters() if weight.grad is None or not weight.grad.any()] == []


# ---------------------------------------------------------------- places


def test_places_by_hand() -> None:
    places = Places(2, 1)
    with torch.no_grad():
        places.place.copy_(torch.tensor([[1.0], [10.0]]))
    assert places(torch.tensor([[[0.0], [0.5], [0.25], [0.0]]])).flatten().tolist() == [1.0, 10.5, 10.25, 10.0]
    with pytest.raises(ConfigError, match="1 or more places"):
        Places(0, 1)


def test_without_places_the_order_of_what_was_before_is_nothing() -> None:
    x = torch.randn(1, 5, 4)
    other = x[:, [2, 0, 3, 1, 4]]
    blind, sees = shaken("sasrec", length=0, blocks=1), shaken("sasrec", blocks=1)
    torch.testing.assert_close(states(blind, x)[:, -1], states(blind, other)[:, -1], rtol=0, atol=1e-6)
    assert (states(sees, x)[:, -1] - states(sees, other)[:, -1]).abs().max() > 1e-3


# ---------------------------------------------------------------- slow ones


def dot(a: Vector, b: Vector) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def linear(layer: nn.Linear, x: Vector) -> Vector:
    return [dot(row, x) + b for row, b in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)]


def normed(layer: nn.LayerNorm, x: Vector) -> Vector:
    mean = sum(x) / len(x)
    std = math.sqrt(sum((v - mean) ** 2 for v in x) / len(x) + layer.eps)
    return [(v - mean) / std * w + b for v, w, b in zip(x, layer.weight.tolist(), layer.bias.tolist(), strict=True)]


def relu(x: Vector) -> Vector:
    return [max(v, 0.0) for v in x]


def add(a: Vector, b: Vector) -> Vector:
    return [x + y for x, y in zip(a, b, strict=True)]


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def slow_caser(net: Convolutions, x: list[Vector]) -> list[Vector]:
    """Filters over the last events of each slot; before the first one stand zeros."""
    x, dim, found = [normed(net.norm, v) for v in x], len(x[0]), []
    for t in range(len(x)):
        seen = [x[s] if s >= 0 else [0.0] * dim for s in range(t - net.window + 1, t + 1)]
        features: Vector = []
        for height, conv in enumerate(net.horizontal, 1):
            assert isinstance(conv, nn.Conv1d)
            assert conv.bias is not None
            for weight, bias in zip(conv.weight.tolist(), conv.bias.tolist(), strict=True):  # (dim, height)
                starts, cells = range(net.window - height + 1), [(d, h) for d in range(dim) for h in range(height)]
                features.append(max(relu([bias + sum(weight[d][h] * seen[start + h][d] for d, h in cells) for start in starts])))
        vertical = net.vertical.weight.tolist()
        features += [sum(w * v[d] for w, v in zip(filter_[0], seen, strict=True)) for d in range(dim) for filter_ in vertical]
        found.append(linear(net.out, relu(linear(net.wide, features))))
    return found


def slow_attention(query: list[Vector], key: list[Vector], value: list[Vector]) -> list[Vector]:
    """Each slot sees itself and what is before it."""
    found = []
    for t, q in enumerate(query):
        e = [math.exp(dot(q, k) / math.sqrt(len(q))) for k in key[: t + 1]]
        found.append([sum(w * v[i] for w, v in zip(e, value, strict=False)) / sum(e) for i in range(len(q))])
    return found


def slow_sasrec(net: SelfAttention, x: list[Vector]) -> list[Vector]:
    places = [[0.0] * len(x[0])] * len(x)
    if net.place is not None:
        known = net.place.place.tolist()
        places = [known[min(t, len(known) - 1)] for t in range(len(x))]
    x = [normed(net.first, add(v, p)) for v, p in zip(x, places, strict=True)]
    for block in net.blocks:
        b: Any = block
        size = len(x[0]) // b.heads
        projected = [linear(b.project, normed(b.norm, v)) for v in x]
        heads = []
        for head in range(b.heads):
            cut = [[p[part * len(x[0]) + head * size :][:size] for p in projected] for part in range(3)]
            heads.append(slow_attention(*cut))
        x = [add(v, linear(b.out, sum((h[t] for h in heads), start=list[float]()))) for t, v in enumerate(x)]
        x = [add(v, linear(b.narrow, relu(linear(b.wide, normed(b.norm_wide, v))))) for v in x]
    return [normed(net.last, v) for v in x]


def slow_gru(net: Recurrent, x: list[Vector]) -> list[Vector]:
    return [linear(net.out, v) for v in recurrent(net.gru, [normed(net.norm, v) for v in x])]


def recurrent(net: nn.GRU, inputs: list[Vector]) -> list[Vector]:
    for layer in range(net.num_layers):
        of_x, of_h, b, b2 = (getattr(net, f"{n}_l{layer}").tolist() for n in ("weight_ih", "weight_hh", "bias_ih", "bias_hh"))
        size = len(of_h[0])
        state, outputs = [0.0] * size, []
        for v in inputs:
            from_x = [dot(row, v) + c for row, c in zip(of_x, b, strict=True)]  # r, z, n
            from_h = [dot(row, state) + c for row, c in zip(of_h, b2, strict=True)]
            r, z = ([sigmoid(p + q) for p, q in zip(from_x[a:c], from_h[a:c], strict=True)] for a, c in ((0, size), (size, 2 * size)))
            new = [math.tanh(from_x[2 * size + i] + r[i] * from_h[2 * size + i]) for i in range(size)]
            state = [(1 - z[i]) * new[i] + z[i] * state[i] for i in range(size)]
            outputs.append(state)
        inputs = outputs
    return inputs


def through(weight: Tensor, x: Vector) -> Vector:
    return [dot(row, x) for row in weight.tolist()]


def slow_dien(net: InterestStates, x: list[Vector]) -> list[Vector]:
    x = [normed(net.norm, v) for v in x]
    interests, size = recurrent(net.extraction, x), len(x[0])
    state, before, found = [0.0] * size, [0.0] * size, []
    for event, interest in zip(x, interests, strict=True):
        a = sigmoid(dot(before, through(net.asked.weight, event)))
        given, asked = linear(net.evolution.input, interest), through(net.evolution.state.weight, state)
        for i in range(size):
            u, r = (sigmoid(given[part * size + i] + asked[part * size + i]) for part in (0, 1))
            new = math.tanh(given[2 * size + i] + r * asked[2 * size + i])
            state = [*state[:i], (1 - a * u) * state[i] + a * u * new, *state[i + 1 :]]
        before = interest
        found.append(linear(net.out, state))
    return found


def slow_surge(net: FusedInterests, x: list[Vector]) -> list[Vector]:
    x, fused = [normed(net.norm, v) for v in x], []

    def cosine(a: Vector, b: Vector) -> float:
        heads = [[list(map(float.__mul__, w, v)) for v in (a, b)] for w in net.metric.tolist()]
        return sum(dot(p, q) / math.sqrt(dot(p, p) * dot(q, q)) for p, q in heads) / len(heads)

    def neighbours(t: int) -> list[int]:
        alike = sorted(range(t + 1), key=lambda j: -cosine(x[t], x[j]))
        return sorted({t, *alike[: math.ceil(net.edges * (t + 1))]})

    def leaky(v: Vector) -> Vector:
        return [max(number, 0.01 * number) for number in v]

    def centre(j: int) -> float:
        near = neighbours(j)
        mean = [sum(x[n][i] for n in near) / len(near) for i in range(len(x[0]))]
        first, last = net.centre[0], net.centre[2]
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        both = [a * b for a, b in zip(through(net.moved.weight, x[j]), mean, strict=True)]
        return through(last.weight, leaky(linear(first, [*x[j], *mean, *both])))[0]

    for t, event in enumerate(x):
        near = neighbours(t)
        score = [centre(j) + dot(through(net.asked.weight, event), x[j]) / math.sqrt(len(event)) for j in near]
        weight = [math.exp(s) / sum(map(math.exp, score)) for s in score]
        sent = [through(net.message.weight, x[j]) for j in near]
        fused.append(leaky([v + sum(w * m[i] for w, m in zip(weight, sent, strict=True)) for i, v in enumerate(event)]))
    return [linear(net.out, v) for v in recurrent(net.gru, fused)]


@torch.no_grad()
def slow_sli_rec(net: LongAndShort, x: list[Vector], gap: Vector | None = None) -> list[Vector]:
    """The LSTM is another's to check (``tests/paper/test_sli_rec.py``): here it reads each beginning of the sequence anew."""
    x, dim, found = [normed(net.norm, v) for v in x], len(x[0]), []
    gap = gap or [0.0] * len(x)

    def mixed(score: Vector, of: list[Vector]) -> Vector:
        weight = [math.exp(s) / sum(map(math.exp, score)) for s in score]
        return [sum(w * v[i] for w, v in zip(weight, of, strict=True)) for i in range(dim)]

    for t, event in enumerate(x):
        n = t + 1
        h = net.lstm(torch.tensor(x[:n]), torch.zeros(n, dtype=torch.int64), 1, torch.tensor(gap[:n])).tolist()
        long = mixed([through(net.long.weight, v)[0] for v in x[:n]], x[:n])
        short = mixed([dot(v, through(net.asked.weight, event)) / math.sqrt(dim) for v in h], h)
        alpha = sigmoid(net.fusion(torch.tensor([[*event, *short, *long, gap[t]]])).item())
        found.append(linear(net.out, [alpha * s + (1 - alpha) * p for s, p in zip(short, long, strict=True)]))
    return found


def test_times_between_events_count_in_timed_encoders_alone() -> None:
    encoder, x, gap = shaken("sli_rec"), torch.randn(2, 6, 4), torch.rand(2, 6)
    assert isinstance(encoder, LongAndShort)
    expected = torch.tensor([slow_sli_rec(encoder, row, since) for row, since in zip(x.tolist(), gap.tolist(), strict=True)])
    with torch.no_grad():
        torch.testing.assert_close(encoder.states(x, gap), expected, rtol=1e-4, atol=1e-4)
        assert (encoder.states(x, None) - expected).abs().max() > 1e-3
        later = gap.clone()
        later[:, 4:] += 1
        torch.testing.assert_close(encoder.states(x, later)[:, :4], expected[:, :4], rtol=1e-4, atol=1e-4)
        blind = shaken("gru4rec")
        assert torch.equal(blind.states(x, gap), blind(x))
    assert [name for name in NAMES if make_encoder(name, 4).timed] == ["sli_rec"]


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("caser", {"window": 3, "horizontal": 2, "vertical": 2}),
        ("caser", {"window": 1, "horizontal": 1, "vertical": 1}),
        ("caser", {"window": 9, "horizontal": 3, "vertical": 1}),
        ("sasrec", {"blocks": 1}),
        ("sasrec", {"blocks": 2, "heads": 2, "length": 3}),
        ("sasrec", {"heads": 4, "length": 0}),
        ("gru4rec", {}),
        ("gru4rec", {"hidden": 3, "layers": 2}),
        ("dien", {}),
        ("sli_rec", {}),
        ("surge", {}),
        ("surge", {"heads": 1, "edges": 0.2, "hidden": 3}),
        ("surge", {"edges": 1.0}),
    ],
)
def test_against_a_slow_one(name: str, args: dict[str, Any]) -> None:
    encoder, x = shaken(name, **args), torch.randn(2, 6, 4)
    slow: Any = {
        "caser": slow_caser,
        "dien": slow_dien,
        "gru4rec": slow_gru,
        "sasrec": slow_sasrec,
        "sli_rec": slow_sli_rec,
        "surge": slow_surge,
    }[name]
    expected = torch.tensor([slow(encoder, row) for row in x.tolist()])
    torch.testing.assert_close(states(encoder, x), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", [name for name in NAMES if "residual" in settings(name)])
def test_the_last_event_itself_may_be_added(name: str) -> None:
    x = torch.randn(2, 6, 4)
    plain, residual = (shaken(name, residual=added) for added in (False, True))
    assert isinstance(plain.norm, nn.LayerNorm)
    torch.testing.assert_close(states(residual, x) - states(plain, x), plain.norm(x).detach(), rtol=1e-4, atol=1e-5)


def test_caser_by_hand() -> None:
    net = make_encoder("caser", 1, {"window": 2, "horizontal": 1, "vertical": 1})
    assert isinstance(net, Convolutions)
    net.norm, net.out = nn.Identity(), nn.Identity()  # type: ignore[assignment]
    one, two = net.horizontal
    assert isinstance(one, nn.Conv1d)
    assert isinstance(two, nn.Conv1d)
    net.wide = nn.Linear(3, 1)
    for layer, weight, bias in (
        (one, [[[1.0]]], [0.5]),
        (two, [[[1.0, -1.0]]], [0.0]),
        (net.vertical, [[[10.0, 1.0]]], None),
        (net.wide, [[1.0, 100.0, 1000.0]], [0.0]),
    ):
        layer.weight.data = torch.tensor(weight)
        if bias is not None:
            assert layer.bias is not None
            layer.bias.data = torch.tensor(bias)
    # Windows (0, 3), (3, 1), (1, 2).  One high: the larger plus a half: 3.5, 3.5, 2.5.  Two high, first less second: 0 (-3), 2, 0 (-1).
    # Vertical, ten times the first and the second: 3, 31, 12.
    assert states(net.eval(), torch.tensor([[[3.0], [1.0], [2.0]]])).flatten().tolist() == [3003.5, 31203.5, 12002.5]
