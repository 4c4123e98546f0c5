"""What every network of ``layers/networks`` keeps; the papers' equations are in ``tests/paper``."""

from __future__ import annotations

import inspect
import subprocess
import sys
from itertools import accumulate, pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook

from isthmus import models
from isthmus.errors import ConfigError
from isthmus.layers.dropout import Dropout
from isthmus.layers.networks import available, get_network, make_network, settings
from isthmus.run import build
from isthmus.schema import Domain, Entity, Schema

NAMES = sorted(available())
WIDTH, OUT, DOMAINS = 6, 3, 4
CHANGED: dict[str, Any] = {  # of each hyper-parameter, a value that is not the default
    "hidden": (9, 7, 5),
    "tower": (11,),
    "tower_norm": True,
    "experts": 3,
    "levels": 3,
    "own": 2,
    "shared": 3,
    "auxiliary": (13,),
    "indicator": 5,
    "norm": False,
}
SCHEMA = Schema(Entity("user", (), 6, 6), Entity("item", (), 6, 6), (Domain("a"), Domain("b")), label="click")
HIDDEN_LAYERS = {  # by default, each one dropped from
    "dnn": 2,
    "shared_bottom": 1 + 1,  # bottom, tower
    "cross_stitch": 2,
    "mlp_plus_plus": 2,
    "conet": 2,
    "mmoe": 2 + 1,  # experts, tower
    "ple": 2 * (1 + 1) + 1,  # two levels of own and shared experts, tower
    "star": 2 + 1,  # star, auxiliary
}
every_network = pytest.mark.parametrize("name", NAMES)


def make(name: str, domains: int = DOMAINS, **args: Any) -> nn.Module:
    """A network whose weights are no longer where they start, after some batches that move running statistics."""
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        net = make_network(name, domains, WIDTH, OUT, args)
        for weight in net.parameters():
            weight += 0.3 * torch.randn_like(weight)
        for _ in range(3):
            net.train()(1 + 2 * torch.randn(8 * domains, WIDTH), range(0, 8 * domains + 1, 8))
    return net.eval()


def rows(sizes: list[int]) -> tuple[Tensor, list[int]]:
    return torch.randn(sum(sizes), WIDTH, generator=torch.Generator().manual_seed(sum(sizes))), [0, *accumulate(sizes)]


@every_network
@hypothesis(max_examples=15, deadline=None)
@given(sizes=st.lists(st.integers(0, 5), min_size=DOMAINS, max_size=DOMAINS))
def test_a_row_alone_is_as_in_company(name: str, sizes: list[int]) -> None:
    net = make(name)
    x, offsets = rows(sizes)
    with torch.no_grad():
        together = net(x, offsets)
        assert together.shape == (len(x), OUT)
        for domain, (start, end) in enumerate(pairwise(offsets)):
            for row in range(start, end):
                alone = net(x[row : row + 1], [0] * (domain + 1) + [1] * (DOMAINS - domain))
                torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=1e-5)


@every_network
def test_domains_differ_unless_the_network_knows_none(name: str) -> None:
    x, _ = rows([2])
    with torch.no_grad():
        found = make(name)(x.repeat(DOMAINS, 1), range(0, 2 * DOMAINS + 1, 2)).view(DOMAINS, 2, OUT)
    for a, b in pairwise(found):
        assert torch.allclose(a, b) == (name == "dnn")


@every_network
def test_every_weight_gets_a_gradient_and_every_output_is_its_own(name: str) -> None:
    net = make(name).train()
    x, offsets = rows([8] * DOMAINS)
    found = net(x, offsets)
    assert torch.linalg.matrix_rank(found.detach()) == OUT
    found.square().sum().backward()
    assert all(p.grad is not None and (p.grad != 0).any() for p in net.parameters())


@every_network
def test_dropout_reaches_the_layers_in_training_alone(name: str) -> None:
    x, offsets = rows([4] * DOMAINS)
    with torch.no_grad():
        net = make(name, dropout=0.5)
        assert torch.equal(net(x, offsets), net(x, offsets))
        net.train()
        assert not torch.allclose(net(x, offsets), net(x, offsets))
        shares = list[float]()
        with register_module_forward_hook(lambda module, *_: shares.append(module.share) if isinstance(module, Dropout) else None):
            net(x, offsets)
    assert shares == [0.5] * HIDDEN_LAYERS[name]


@every_network
def test_one_domain_is_enough(name: str) -> None:
    x, offsets = rows([5])
    assert make(name, domains=1)(x, offsets).isfinite().all()


@every_network
def test_every_hyper_parameter_arrives_and_has_a_line_in_the_docstring(name: str) -> None:
    def parts(net: nn.Module) -> dict[str, torch.Size]:
        return {key: value.shape for key, value in net.state_dict().items()}

    lines = {line.strip().split(":")[0] for line in (get_network(name).__doc__ or "").splitlines()}
    plain = parts(make_network(name, 2, WIDTH, OUT))
    assert settings(name).keys() - {"dropout"} <= CHANGED.keys()
    assert settings(name)["dropout"] == 0.0
    for key in settings(name):
        assert key in lines
        if key != "dropout":  # a test of its own
            assert parts(make_network(name, 2, WIDTH, OUT, {key: CHANGED[key]})) != plain, key


@every_network
def test_is_one_signature_for_all(name: str) -> None:
    first, second, *others = inspect.signature(get_network(name)).parameters.values()
    assert (first.name, second.name) == ("domains", "width")
    assert all(p.kind is p.KEYWORD_ONLY for p in others)
    assert [p.name for p in others if p.default is p.empty] == ["out"]


@every_network
def test_the_ranking_model_of_the_same_name_has_the_same_defaults_and_hands_them_on(name: str) -> None:
    ranking = models.settings(name)
    for key, default in settings(name).items():
        assert ranking["dim" if key == "indicator" else key] == default
    args = {key: CHANGED[key] for key in settings(name) if key != "dropout"} | {"dropout": 0.5}
    model = build(name, SCHEMA, {**{k: v for k, v in args.items() if k != "indicator"}, "dim": CHANGED["indicator"]}, seed=0)
    width = model.inputs.width  # type: ignore[union-attr]
    net = make_network(name, len(SCHEMA.domains), width, 1, args)  # type: ignore[arg-type]
    net.load_state_dict(model.network.state_dict())  # type: ignore[union-attr]
    x = torch.randn(8, width)  # type: ignore[arg-type]
    with torch.random.fork_rng(), torch.no_grad():
        found = [(torch.manual_seed(0), part.train()(x, (0, 4, 8)))[1] for part in (net, model.network)]  # type: ignore[union-attr]
    assert torch.equal(*found)


@every_network
def test_an_unknown_hyper_parameter_is_answered_with_the_nearest(name: str) -> None:
    with pytest.raises(ConfigError, match=r"no hyper-parameter 'hiden'\n.*\n.*did you mean 'hidden'"):
        make_network(name, 2, WIDTH, OUT, {"hiden": (3,)})
    for given_elsewhere in ("domains", "width", "out"):
        with pytest.raises(ConfigError, match=given_elsewhere):
            make_network(name, 2, WIDTH, OUT, {given_elsewhere: 3})


def test_an_unknown_network_is_answered_with_the_nearest() -> None:
    for call in (get_network, settings, lambda name: make_network(name, 2, WIDTH, OUT)):
        with pytest.raises(ConfigError, match="did you mean 'cross_stitch'"):
            call("crossstitch")


@pytest.mark.parametrize("name", ["cross_stitch", "mmoe", "ple"])
def test_refuses_experts_without_a_layer(name: str) -> None:
    with pytest.raises(ConfigError, match="at least one hidden layer"):
        make_network(name, 2, WIDTH, OUT, {"hidden": ()})


@every_network
@pytest.mark.parametrize("dropout", [-0.1, 1.0, 1.5, float("nan")])
def test_refuses_a_dropout_that_is_no_share(name: str, dropout: float) -> None:
    with pytest.raises(ConfigError, match=f"dropout = {dropout}"):
        make(name, dropout=dropout)


@pytest.mark.parametrize("name", ["dnn", "shared_bottom", "star"])
def test_hidden_layers_may_be_none(name: str) -> None:
    assert make(name, hidden=())(*rows([2] * DOMAINS)).shape == (2 * DOMAINS, OUT)


def test_listing_the_names_imports_no_torch() -> None:
    code = "import sys; from isthmus.layers.networks import available; assert len(available()) == 8; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
