"""ADI's towers: equations 8 to 26 on hand-worked numbers, and again row by row in plain numpy; who meets whose weights."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from isthmus.errors import ConfigError
from isthmus.layers.adi import Adaptation, Norm, Tower

FUSIONS, ADAPTATIONS = ("concat", "sum", "network_mul"), ("none", "linear", "attention", "se")
PLACEMENTS, NORMS = ("one", "per_domain", "per_network"), ("domain", "batch", "none")
DOMAINS, FIELDS, DIM = 3, 4, 3
LOG3 = math.log(3)


def small(fusion: str, **changes: Any) -> Tower:
    """Two domains, one field of one number, no norm: what the hand-worked examples stand on."""
    plain: dict[str, Any] = {"hidden": [1], "shared": 1, "norm": "none", "adaptation": "none", "placement": "one"}
    return Tower(2, 1, 1, fusion=fusion, dropout=0.0, **{"residual": False} | plain | changes)


def put(module: nn.Module, **values: Any) -> None:
    """Weights by name (``__`` for a dot)."""
    state = module.state_dict()
    for name, value in values.items():
        key = name.replace("__", ".")
        state[key] = torch.tensor(value, dtype=state[key].dtype).view_as(state[key])
    module.load_state_dict(state)


def of_two(tower: Tower, x: float = 2.0) -> list[float]:
    """One row of each domain, with the same input."""
    return tower(torch.full((2, 1, 1), x), (0, 1, 2)).flatten().tolist()


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("dropout", [-0.1, 1.0, math.nan])
def test_refuses_a_dropout_that_is_no_share(fusion: str, dropout: float) -> None:
    with pytest.raises(ConfigError, match=f"dropout = {dropout}"):
        Tower(
            2, 1, 1, fusion=fusion, dropout=dropout, hidden=[1], shared=1, norm="none", adaptation="none", placement="one", residual=False
        )


# ---------------------------------------------------------------- by hand


def mixed(fusion: str, shared: int, **more: Any) -> Tower:
    """x = 2: the shared networks give 2, 6 and 10, the specific ones 20 (a) and 3 (b); f_domain is 1 (a) and 2 (b)."""
    tower = small(fusion, shared=shared)
    for k in range(shared):
        put(tower, **{f"shared__{k}__layers__0__weight": [[[1.0, 3.0, 5.0][k]]], f"shared__{k}__layers__0__bias": [0.0]})
    put(tower, spec__layers__0__weight=[10.0, 1.0], spec__layers__0__bias=[0.0, 1.0], f_domain=[1.0, 2.0])
    if shared > 1:
        put(tower, share__weight=[0.0, LOG3, math.log(4)][:shared], share__bias=[0.0] * shared)
    put(tower, **more)
    return tower


@pytest.mark.parametrize(("shared", "a", "b"), [(1, 2.0, 2.0), (2, 5.0, 5.6), (3, 7.5, 216 / 26)])
def test_shared_networks_are_mixed_by_the_domain_and_summed_with_its_own(shared: int, a: float, b: float) -> None:
    """Eq. 8-10, 14, 15, 18.  alpha: softmax of (0, log 3, log 4) * f: (1, 3, 4) / 8 in a, (1, 9, 16) / 26 in b."""
    # gates: sigmoid(0) = 1/2 in a, sigmoid(log 3) = 3/4 in b;  FC: 2 f + 1 in a, 10 f in b
    forward = {"forward_network__weight": [2.0, 10.0], "forward_network__bias": [1.0, 0.0]}
    tower = mixed("sum", shared, fusion__gate=[0.0, LOG3 / 2], fusion__bias=[0.0], **forward)
    assert of_two(tower) == pytest.approx([2 * (20 + a) / 2 + 1, 10 * (0.75 * 3 + 0.25 * b)])
    put(tower, fusion__bias=[LOG3])  # shared by both domains: sigmoid(log 3) = 3/4 in a, sigmoid(2 log 3) = 9/10 in b
    assert of_two(tower) == pytest.approx([2 * (0.75 * 20 + 0.25 * a) + 1, 10 * (0.9 * 3 + 0.1 * b)])


def test_concat_gates_both_parts_and_their_product() -> None:
    """Eq. 11-13, 18: beta_1 is 3/4 in a and 1/2 in b, beta_2 is 1/2 in a and 1/4 in b."""
    gates = {"fusion__spec": [LOG3, 0.0], "fusion__shared": [0.0, -LOG3 / 2]}
    weights = {"forward_network__weight": [1.0, 2.0, 4.0, 3.0, 10.0, -1.0], "forward_network__bias": [0.0, -1.0]}
    # a: [15, 37.5, 2.5];  b: [1.5, 2.1, 1.4]
    assert of_two(mixed("concat", 2, **gates, **weights)) == pytest.approx([15 + 75 + 10, 4.5 + 21 - 1.4 - 1])


def test_network_mul_multiplies_weights_and_adds_biases() -> None:
    """Eq. 16, 17: (2 * 3) x + 1 - 4 = 8 in a; (2 * -1) x + 1 + 5 = 2 in b."""
    tower = small("network_mul")
    put(tower, fusion__shared__0__weight=[2.0], fusion__shared__0__bias=[1.0])
    put(tower, fusion__weights__0=[3.0, -1.0], fusion__biases__0=[-4.0, 5.0])
    put(tower, forward_network__weight=[2.0, 10.0], forward_network__bias=[1.0, 0.0])
    assert of_two(tower) == pytest.approx([2 * 9 + 1, 10 * 2])


def adapted(kind: str, x: list[Any], offsets: tuple[int, ...], **weights: Any) -> list[Any]:
    x_ = torch.tensor(x)
    layer = Adaptation(kind, 2, x_.shape[1], x_.shape[2])
    put(layer, **weights)
    return layer(x_, offsets).tolist()


def test_linear_adaptation_by_hand() -> None:
    """Eq. 22, on two fields of one number."""
    found = adapted("linear", [[[3.0], [5.0]]] * 2, (0, 1, 2), weight=[1.0, 2.0, 0.0, -1.0], bias=[0.0, 1.0, 7.0, 0.0])
    assert found == [[[3.0], [11.0]], [[7.0], [-5.0]]]


def test_attention_adaptation_by_hand() -> None:
    """Eq. 23, 24: Q F = log 3 - 0, so 3/4 of the first field of a; 0, so half, elsewhere."""
    x = [[[1.0, 2.0], [4.0, 6.0]]] * 2
    query = [LOG3 - 2.0, 1.0, 3.0, -2.0, 2.0, -1.0, 0.0, 0.0]
    found = adapted("attention", x, (0, 1, 2), query=query)
    torch.testing.assert_close(torch.tensor(found), torch.tensor([[[0.75, 1.5], [2.0, 3.0]], [[0.5, 1.0], [2.0, 3.0]]]))


def test_squeeze_and_excitation_by_hand() -> None:
    """Eq. 25, 26: means (2, 5), squeezed by ReLU(m_1 - 1, m_2 - 6) = (1, 0) in a and (3, 5) in b, excited linearly."""
    found = adapted(
        "se",
        [[[1.0, 3.0], [4.0, 6.0]]] * 2,
        (0, 1, 2),
        squeeze__weight=[1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0],
        squeeze__bias=[-1.0, -6.0, 1.0, 0.0],
        excite__weight=[2.0, 9.0, -1.0, 9.0, 1.0, 1.0, 1.0, 0.0],
        excite__bias=[0.5, 0.0, 0.0, -1.0],
    )
    assert found == [[[2.5, 7.5], [-4.0, -6.0]], [[8.0, 24.0], [8.0, 12.0]]]  # alpha: (2.5, -1) in a, (8, 2) in b


def test_domain_norm_by_hand() -> None:
    """Eq. 20: a has (1, 3), mean 2 and deviation 1; b has one row, which has no variance; c has none."""
    norm = Norm("domain", 3, 1)
    put(norm, norm__weight=[2.0, 1.0, 1.0], norm__bias=[1.0, 0.5, 0.0])
    put(norm, norm__running_mean=[0.0, 4.0, 5.0], norm__running_var=[1.0, 4.0, 9.0])
    x = torch.tensor([[1.0], [3.0], [10.0]])
    torch.testing.assert_close(norm(x, (0, 2, 3, 3)), torch.tensor([[-1.0], [3.0], [3.5]]), atol=1e-4, rtol=0.0)
    assert norm.norm is not None
    torch.testing.assert_close(norm.norm.running_mean.flatten(), torch.tensor([0.2, 4.0, 5.0]))  # 0.9 * 0 + 0.1 * 2
    torch.testing.assert_close(norm.norm.running_var.flatten(), torch.tensor([1.1, 4.0, 9.0]))  # 0.9 * 1 + 0.1 * 2, unbiased
    for mode in (True, False):
        assert norm.train(mode)(x[:0], (0, 0, 0, 0)).shape == (0, 1), "no rows at all"
    torch.testing.assert_close(norm(torch.tensor([[14.0]]), (0, 0, 0, 1)), torch.tensor([[3.0]]))  # (14 - 5) / 3
    torch.testing.assert_close(norm.norm.running_mean.flatten(), torch.tensor([0.2, 4.0, 5.0]))


def test_batch_norm_by_hand() -> None:
    """Eq. 19: one mean (4) and one variance (26 / 3) for the rows of all domains."""
    norm, x = Norm("batch", 2, 1), torch.tensor([[1.0], [3.0], [8.0]])
    torch.testing.assert_close(norm(x, (0, 2, 3)), (x - 4) / math.sqrt(26 / 3 + 1e-5))
    assert norm.norm is not None
    torch.testing.assert_close(norm.norm.running_mean, torch.tensor([[0.4]]))
    torch.testing.assert_close(norm.norm.running_var, torch.tensor([[0.9 + 1.3]]))
    torch.testing.assert_close(norm.eval()(x[:1], (0, 1, 1)), torch.tensor([[0.6 / math.sqrt(2.2 + 1e-5)]]))


# ---------------------------------------------------------------- row by row


class Paper:
    """The printed formulas (eq. 8 as a softmax), one row at a time, on a tower's weights."""

    def __init__(self, tower: Tower, settings: dict[str, Any]) -> None:
        self.w = {name: value.numpy().copy() for name, value in tower.state_dict().items()}
        self.set, self.training = settings, tower.training

    def __call__(self, x: np.ndarray, domain: list[int]) -> np.ndarray:
        place, pairs = self.set["placement"], list(zip(x, domain, strict=True))
        rows = list(x) if place == "per_network" else [self.adapt("adapt", place == "per_domain", f, d) for f, d in pairs]
        if self.set["fusion"] == "network_mul":
            fused = self.network("fusion", rows, domain, False)
        else:
            pairs = list(zip(rows, domain, strict=True))
            spec = self.network("spec", [self.own("adapt_spec", True, f, d) for f, d in pairs], domain, True)
            each = [
                self.network(f"shared.{k}", [self.own(f"adapt_shared.{k}", False, f, d) for f, d in pairs], domain, False)
                for k in range(self.set["shared"])
            ]
            fused = [self.fuse(spec[n], [e[n] for e in each], d) for n, d in enumerate(domain)]
        w, b = self.w["forward_network.weight"], self.w["forward_network.bias"]
        out = [w[d] @ f + b[d] for f, d in zip(fused, domain, strict=True)]  # eq. 18
        if self.set["residual"]:
            out = [self.w["gate"] * o + f.sum(0) for o, f in zip(out, rows, strict=True)]
        return np.stack(out)

    def own(self, name: str, per_domain: bool, f: np.ndarray, d: int) -> np.ndarray:
        return self.adapt(name, per_domain, f, d) if self.set["placement"] == "per_network" else f

    def adapt(self, name: str, per_domain: bool, f: np.ndarray, d: int) -> np.ndarray:
        kind, c = self.set["adaptation"], d if per_domain else 0
        if kind == "none":
            return f
        if kind == "linear":
            return self.w[f"{name}.weight"][c] * f + self.w[f"{name}.bias"][c]  # eq. 22
        return np.stack([a * field for a, field in zip(self.alpha(name, c, f), f, strict=True)])  # eq. 24, 26

    def alpha(self, name: str, c: int, f: np.ndarray) -> list[float]:
        if self.set["adaptation"] == "attention":
            return [sigmoid(q @ field) for q, field in zip(self.w[f"{name}.query"][c], f, strict=True)]  # eq. 23
        mean = np.array([field.mean() for field in f])
        low = np.maximum(self.w[f"{name}.squeeze.weight"][c] @ mean + self.w[f"{name}.squeeze.bias"][c], 0)
        return list(self.w[f"{name}.excite.weight"][c] @ low + self.w[f"{name}.excite.bias"][c])  # eq. 25

    def network(self, name: str, rows: list[np.ndarray], domain: list[int], per_domain: bool) -> list[np.ndarray]:
        hidden = [f.reshape(-1) for f in rows]
        for layer in range(len(self.set["hidden"])):
            for n, d in enumerate(domain):
                if name == "fusion":
                    w = self.w[f"fusion.shared.{layer}.weight"] * self.w[f"fusion.weights.{layer}"][d]
                    b = self.w[f"fusion.shared.{layer}.bias"] + self.w[f"fusion.biases.{layer}"][d]  # eq. 16
                else:
                    w, b = (self.w[f"{name}.layers.{layer}.{kind}"][d if per_domain else 0] for kind in ("weight", "bias"))
                hidden[n] = w @ hidden[n] + b
            hidden = [np.maximum(h, 0) for h in self.norm(f"{name}.norms.{layer}.norm", hidden, domain)]
        return hidden

    def norm(self, name: str, rows: list[np.ndarray], domain: list[int]) -> list[np.ndarray]:
        if self.set["norm"] == "none":
            return rows
        out, group = [], domain if self.set["norm"] == "domain" else [0] * len(domain)
        for row, g in zip(rows, group, strict=True):
            company = np.stack([r for r, other in zip(rows, group, strict=True) if other == g])
            mean, var = self.w[f"{name}.running_mean"][g], self.w[f"{name}.running_var"][g]
            if self.training and len(company) > 1:
                mean, var = company.mean(0), company.var(0)
            out.append(self.w[f"{name}.weight"][g] * (row - mean) / np.sqrt(var + 1e-5) + self.w[f"{name}.bias"][g])  # eq. 19, 20
        return out

    def fuse(self, spec: np.ndarray, each: list[np.ndarray], d: int) -> np.ndarray:
        f = self.w["f_domain"][d]
        power = [1.0]
        if len(each) > 1:
            power = [math.exp(w @ f + b) for w, b in zip(self.w["share.weight"], self.w["share.bias"], strict=True)]
        shared = sum(p / sum(power) * e for p, e in zip(power, each, strict=True))  # eq. 8, 9
        if self.set["fusion"] == "sum":
            alpha = sigmoid(self.w["fusion.gate"][d] @ f + self.w["fusion.bias"][0])
            return alpha * spec + (1 - alpha) * shared  # eq. 14, 15
        beta1, beta2 = (np.array([sigmoid(w @ f) for w in self.w[f"fusion.{kind}"][d]]) for kind in ("spec", "shared"))
        return np.concatenate([beta1 * spec, beta1 * spec * beta2 * shared, beta2 * shared])  # eq. 11-13


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def shaken(**changes: Any) -> tuple[Tower, dict[str, Any]]:
    """A tower in double precision whose every weight and statistic is far from where it starts, and its settings."""
    torch.manual_seed(0)
    plain = {"hidden": [5, 4], "shared": 2, "fusion": "concat", "norm": "domain", "adaptation": "se", "placement": "per_domain"}
    settings: dict[str, Any] = {**plain, "residual": True, **changes}
    tower = Tower(DOMAINS, FIELDS, DIM, dropout=0.0, **settings).double()
    with torch.no_grad():
        for name, value in tower.state_dict().items():
            value.copy_(torch.rand_like(value) + 0.5 if "running_var" in name else value + 0.6 * torch.randn_like(value))
    return tower, settings


CHOICES = [  # every two settings meet
    {"fusion": f, "adaptation": a, "placement": p, "norm": n, "shared": 1 if f == "network_mul" else k, "residual": k == 2}
    for (x, f), (y, a), (z, p) in itertools.product(enumerate(FUSIONS), enumerate(ADAPTATIONS), enumerate(PLACEMENTS))
    for n, k in [(NORMS[(x + y + z) % 3], (x + y + 2 * z) % 3 + 1)]
    if not (f == "network_mul" and p == "per_network" and a != "none")
]


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("settings", CHOICES, ids=lambda s: "-".join(str(v) for v in s.values()))
def test_a_tower_is_the_papers_row_by_row(settings: dict[str, Any], training: bool) -> None:
    tower, settings = shaken(**settings)
    for sizes in ((3, 2, 4), (2, 0, 1), (0, 1, 0)):
        offsets, domain = tuple(np.cumsum((0, *sizes)).tolist()), np.repeat(range(DOMAINS), sizes).tolist()
        x = torch.randn(len(domain), FIELDS, DIM, dtype=torch.float64)
        expected = Paper(tower.train(training), settings)(x.numpy(), domain)  # before the tower moves its statistics
        np.testing.assert_allclose(tower(x, offsets).detach().numpy(), expected, rtol=1e-9, atol=1e-9)
