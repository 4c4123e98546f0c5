"""DADIN: equations 1 to 14 and 22 by hand or written out; what each ablation changes; gradient reversal by finite differences."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from isthmus.batch import Batch
from isthmus.errors import ConfigError
from isthmus.layers.adversarial import DomainClassifier, reverse, warm_up
from isthmus.layers.interests import InterestAttention
from isthmus.layers.start import FromBiases
from isthmus.models.dadin import DADIN
from isthmus.models.minet import MiNet
from isthmus.schema import PADDING, Domain, Entity, Field, Schema
from isthmus.task import get_task

LEVEL = torch.tensor([-1.0, 2.0])


@pytest.fixture
def rich() -> Schema:
    """Two domains; users with a category, items with a number; a context field."""
    user = Entity("user", (Field("age", "categorical", 4),), 6, 6)
    item = Entity("item", (Field("price", "numeric"),), 6, 6)
    return Schema(user, item, (Domain("a"), Domain("b")), context=(Field("hour", "categorical", 5),), label="click")


@pytest.fixture
def rows(batch: Batch) -> Batch:
    """The last user did nothing here, the third nothing anywhere."""
    batch.context = {"hour": torch.tensor([1, 2, 3, 4, 0])}
    batch.history = torch.tensor([[0, 2], [3, 4], [0, 0], [0, 5], [0, 0]])
    batch.cross_history = torch.tensor([[5, 3], [0, 2], [0, 0], [0, 0], [4, 4]])
    batch.cross_domain = torch.tensor([[1, 1], [-1, 1], [-1, -1], [-1, -1], [0, 0]])
    return batch


def made(model: type[DADIN] | type[MiNet], schema: Schema, **args: Any) -> Any:
    """A model whose fields are filled and whose weights are far from 0, in evaluation."""
    torch.manual_seed(0)
    if model is DADIN:
        args = {"start": "level", "first_order": False, **args}  # as printed
    found = model(schema, dim=3, id_dropout=0.0, **args)
    with torch.no_grad():
        for weight in found.parameters():
            weight += 0.3 * torch.randn_like(weight)
        found.interests.users.table.weight[PADDING] = found.interests.items.table.weight[PADDING] = 0.0
        found.interests.users.field_rows[:, 0] = torch.tensor([0, 7, 8, 9, 7, 8])
        found.interests.items.numeric[:, 0] = torch.tensor([0.0, 1.0, -1.0, torch.nan, 0.5, 2.0])
        found.levels.level.copy_(LEVEL)
    return found.eval()


class _Given(torch.nn.Module):
    def __init__(self, x: Tensor) -> None:
        super().__init__()
        self.x = x

    def forward(self, batch: Batch) -> Tensor:
        return self.x


def interests_written_out(model: Any, rows: Batch, b: int, c: int) -> Tensor:
    """(4, dim): q, p, a, b of one row and one candidate, eq. 1-3."""
    i = model.interests
    q = i.items(rows.item[b, c]).sum(0)
    p = i.users(rows.user[b]).sum(0) + i.context(rows.context)[b].sum(0)  # eq. 1
    found = [q, p]
    for history, unit in ((rows.history, i.here), (rows.cross_history, i.elsewhere)):
        events = [i.items(code).sum(0) for code in history[b] if code != PADDING]
        if not events:
            found.append(torch.zeros_like(q))
        elif unit is None:
            found.append(torch.stack(events).mean(0))
        else:
            moved = [r if unit.transfer is None else unit.transfer.weight @ r for r in events]
            w = torch.cat([unit.event.weight, unit.query.weight, unit.profile.weight, unit.both.weight], 1)  # W_j, (d, 4d)
            score = [
                unit.rest[-1].weight[0] @ (w @ torch.cat([r, q, p, m * q]) + unit.query.bias).relu()  # eq. 3
                for r, m in zip(events, moved, strict=True)
            ]
            found.append((torch.stack(score).softmax(0)[:, None] * torch.stack(events)).sum(0))  # eq. 2
    return torch.stack(found)


def weighted(model: Any, x: Tensor) -> Tensor:
    """Eq. 4-6 on (4, dim)."""
    attention: InterestAttention | None = model.attention
    if attention is None:
        return x
    v = []
    for k in range(3):
        hidden = (attention.hidden.weight.view(3, 3, -1)[k] @ x.flatten()).relu()
        score = attention.read[k] @ hidden
        v.append((score + attention.bias[k]).exp() if attention.inside else score.exp() + attention.bias[k])
    return torch.cat([x[:1], torch.stack(v)[:, None] * x[1:]])


def specific_written_out(model: DADIN, rows: Batch, b: int, c: int) -> Tensor:
    m = weighted(model, interests_written_out(model, rows, b, c))
    z = m.flatten()
    if model.field_weight is not None:
        scaled = [m[i] * model.field_weight[i] for i in range(4)]
        z = sum((scaled[i] * scaled[j] for i, j in itertools.combinations(range(4), 2)), torch.zeros(3))  # eq. 7
    return z if model.crossing is None else model.crossing(z[None])[0]


SWITCHES: list[dict[str, Any]] = [
    {},
    {"item_attention": False},
    {"interest_attention": False},
    {"bi_interaction": False},
    {"hidden": ()},
    {"bi_interaction": False, "hidden": ()},
    {"domain_agnostic": False},
    {"global_weight": 0.0},
    {"class_weight": 0.0},
    {"global_weight": 0.0, "class_weight": 0.0},
]


@pytest.mark.parametrize("switches", SWITCHES, ids=lambda args: ",".join(args) or "whole")
@torch.no_grad()
def test_forward_written_out(switches: dict[str, Any], rich: Schema, rows: Batch) -> None:
    model = made(DADIN, rich, **switches)
    found = model(rows)
    assert found.extra == {}  # nothing adversarial outside training
    specific, agnostic = model.features(rows)
    for b, c in itertools.product(range(5), range(2)):
        h = specific_written_out(model, rows, b, c)
        torch.testing.assert_close(specific[2 * b + c], h, rtol=1e-4, atol=1e-5)
        if model.agnostic is not None:
            torch.testing.assert_close(agnostic[2 * b + c], model.agnostic(h[None])[0], rtol=1e-4, atol=1e-5)
            h = h + model.agnostic(h[None])[0]
        one = model.predictor[0].weight @ h + model.predictor[0].bias  # eq. 9, without dropout here
        d = int(rows.domain[b])
        logit = model.predictor[2].weight @ one + model.predictor[2].bias + LEVEL[d] + model.offset.weight[d + 1]
        torch.testing.assert_close(found.logit[b, c], logit[0], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_fields_have_weights_of_their_own(rich: Schema, rows: Batch) -> None:
    model = made(DADIN, rich, first_order=True)
    w = model.weights
    w.users.field_rows.copy_(model.interests.users.field_rows)
    w.items.numeric.copy_(model.interests.items.numeric)
    found = model(rows).logit
    specific, agnostic = model.features(rows)
    above = model.predictor(specific + agnostic).view(5, 2)
    for b, c in itertools.product(range(5), range(2)):
        events = [w.items(code).sum() for code in rows.history[b] if code != PADDING]
        history = torch.stack(events).mean() if events else torch.zeros(())
        d = int(rows.domain[b])
        first = w.users(rows.user[b]).sum() + w.items(rows.item[b, c]).sum() + w.context(rows.context)[b].sum()
        expected = LEVEL[d] + first + history + w.domain.weight[d + 1, 0] + above[b, c]
        torch.testing.assert_close(found[b, c], expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_the_biases_take_the_levels_place(rich: Schema, rows: Batch) -> None:
    model, given = made(DADIN, rich, start="bias"), _Given(torch.arange(10.0).view(5, 2))
    assert isinstance(model.start, FromBiases)
    model.start = given
    specific, agnostic = model.features(rows)
    above = model.predictor(specific + agnostic).view(5, 2) + model.offset.weight[rows.domain + 1]
    torch.testing.assert_close(model(rows).logit, above + given.x)
    with pytest.raises(ConfigError, match="did you mean 'level'"):
        DADIN(rich, start="levle")


@pytest.mark.parametrize("switches", SWITCHES[1:], ids=lambda args: ",".join(args))
def test_a_switch_takes_away_exactly_its_part(switches: dict[str, Any], rich: Schema) -> None:
    parts = {
        "item_attention": {"interests.here", "interests.elsewhere"},
        "interest_attention": {"attention"},
        "bi_interaction": {"field_weight"},
        "hidden": {"crossing"},
        "domain_agnostic": {"agnostic"},
        "global_weight": {"whole"},
        "class_weight": {"negatives", "positives"},
    }
    gone = set().union(*(parts[name] for name in switches))
    whole, less = ({name for name, _ in DADIN(rich, **args).named_parameters()} for args in ({}, switches))
    assert whole - less == {name for name in whole if any(name == part or name.startswith(part + ".") for part in gone)}
    assert less < whole


@pytest.mark.parametrize("switches", [{}, {"item_attention": False}, {"interest_attention": False}])
@torch.no_grad()
def test_minet_written_out(switches: dict[str, Any], rich: Schema, rows: Batch) -> None:
    model = made(MiNet, rich, **switches)
    found = model(rows).logit
    for b, c in itertools.product(range(5), range(2)):
        d = int(rows.domain[b])
        m = weighted(model, interests_written_out(model, rows, b, c)).flatten()
        torch.testing.assert_close(found[b, c], model.networks.specialise(d)(m[None])[0, 0] + LEVEL[d], rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------- adversarial terms


def confusion(model: DADIN, rows: Batch) -> dict[str, Tensor]:
    return model.train()(rows).extra


@pytest.mark.parametrize("threshold", [None, 0.25, 0.5])
def test_losses_by_side_written_out(threshold: float | None, rich: Schema, rows: Batch) -> None:
    args = {"global_weight": 0.5, "class_weight": 2.0, "alpha": 0.25, "threshold": threshold, "bounded": False, "classifier_rate": 1.0}
    model = made(DADIN, rich, **args)
    found = confusion(model, rows)
    with torch.no_grad():
        _, h = model.features(rows)
        y = model(rows).logit.sigmoid().flatten()
    d = rows.domain.repeat_interleave(2)

    def loss(classifier: DomainClassifier, x: Tensor, side: Tensor) -> Tensor:
        """Eq. 12 and 16 as printed: one logit, d = 1 for the second domain."""
        w, bias = classifier.weight[1] - classifier.weight[0], classifier.bias[1] - classifier.bias[0]
        every = F.binary_cross_entropy_with_logits(x @ w + bias, d.float(), reduction="none")
        return every[side].mean() if side.any() else torch.zeros(())

    T = LEVEL.sigmoid()[d] if threshold is None else threshold
    everyone = torch.ones(10, dtype=torch.bool)
    torch.testing.assert_close(found["domain"], 0.5 * loss(model.whole, h, everyone))
    zero = loss(model.negatives, (1 - y)[:, None] * h, y < T)  # eq. 14, 18
    one = loss(model.positives, y[:, None] * h, y >= T)  # eq. 13, 17
    torch.testing.assert_close(found["domain_by_class"], 2.0 * (0.25 * zero + 0.75 * one))


@pytest.mark.parametrize(("threshold", "empty"), [(1.0, "positives"), (0.0, "negatives")])
def test_an_empty_side_is_exactly_nothing(threshold: float, empty: str, rich: Schema, rows: Batch) -> None:
    model = made(DADIN, rich, threshold=threshold, alpha=1.0 if empty == "negatives" else 0.0)
    loss = confusion(model, rows)["domain_by_class"]
    assert loss.item() == 0
    loss.backward()
    classifier = getattr(model, empty)
    assert torch.equal(classifier.weight.grad, torch.zeros_like(classifier.weight))


def test_rows_of_one_domain_say_nothing_of_domains(rich: Schema, rows: Batch) -> None:
    alone = rows.take(torch.arange(3), torch.zeros(3, dtype=torch.int64))
    assert confusion(made(DADIN, rich), alone) == {}


def test_weights_of_rows_count(rich: Schema, rows: Batch) -> None:
    model = made(DADIN, rich)
    whole = confusion(model, rows.take(torch.tensor([0, 3, 4]), torch.tensor([0, 1, 1])))
    rows.weight = torch.tensor([1.0, 0.0, 0.0, 1.0, 1.0])
    found = confusion(model, rows)
    for name, value in whole.items():
        torch.testing.assert_close(found[name], value)


@pytest.mark.parametrize("strength", [1.0, 0.3])
def test_reversal_by_finite_differences(strength: float) -> None:
    """The gradient of what stands before it has the other sign and another scale; of what stands after it, neither."""
    torch.manual_seed(0)
    x, domain = torch.randn(6, 4, dtype=torch.float64, requires_grad=True), torch.tensor([0, 0, 1, 1, 2, 2])
    classifier = DomainClassifier(3, 4).double()
    classifier.loss(reverse(x, strength), domain).backward()
    assert x.grad is not None

    def slope(tensor: Tensor, at: tuple[int, int]) -> float:
        values = []
        with torch.no_grad():
            for step in (1e-6, -1e-6):
                tensor[at] += step
                values.append(classifier.loss(reverse(x, strength), domain).item())
                tensor[at] -= step
        return (values[0] - values[1]) / 2e-6

    for at in ((0, 0), (3, 2), (5, 1)):
        assert x.grad[at].item() == pytest.approx(-strength * slope(x, at), rel=1e-4)
    assert classifier.weight.grad[1, 2].item() == pytest.approx(slope(classifier.weight, (1, 2)), rel=1e-4)
    assert torch.equal(reverse(x, strength), x)


def test_the_label_predictor_learns_from_its_own_loss_alone(rich: Schema, rows: Batch) -> None:
    """Eq. 24."""
    model = made(DADIN, rich, warm_up=0)
    torch.stack(list(confusion(model, rows).values())).sum().backward()
    assert all(p.grad is None for p in model.predictor.parameters())
    assert model.interests.items.table.weight.grad.abs().sum() > 0


def test_warm_up_rises_over_epochs(rich: Schema, rows: Batch) -> None:
    assert [warm_up(epoch, 10) for epoch in (0, 1, 10)] == pytest.approx([0, math.tanh(0.5), math.tanh(5)])
    assert warm_up(0, 0) == 1
    for epoch, share in ((0, 0.0), (1, math.tanh(2.5))):
        rows.epoch = epoch
        grads = []
        for args in ({"warm_up": 2}, {"warm_up": 0}):
            model = made(DADIN, rich, **args)
            confusion(model, rows)["domain"].backward()
            grads.append(model.crossing.layers[0].weight.grad)
        torch.testing.assert_close(grads[0], share * grads[1])


def test_bounded_losses_do_not_see_how_long_features_are(rich: Schema, rows: Batch) -> None:
    long, short = made(DADIN, rich), made(DADIN, rich)
    with torch.no_grad():
        for p in long.agnostic.layers[-1].parameters():
            p *= 100.0
    torch.testing.assert_close(confusion(long, rows)["domain"], confusion(short, rows)["domain"], rtol=1e-3, atol=1e-4)
    grown = made(DADIN, rich, bounded=False)
    with torch.no_grad():
        for p in grown.agnostic.layers[-1].parameters():
            p *= 100.0
    assert confusion(grown, rows)["domain"] > 2 * confusion(made(DADIN, rich, bounded=False), rows)["domain"]


def test_terms_are_added_to_the_tasks_loss_by_name(rich: Schema, rows: Batch) -> None:
    model = made(DADIN, rich).train()
    assert set(get_task("ctr").loss(model, rows)) == {"loss", "domain", "domain_by_class"}


@pytest.mark.parametrize("wrong", [{"alpha": 1.5}, {"threshold": -0.1}, {"strength": -1.0}, {"global_weight": math.nan}])
def test_numbers_out_of_range(wrong: dict[str, float], rich: Schema) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        DADIN(rich, **wrong)


def test_a_classifier_with_a_rate_starts_as_one_without_and_moves_so_much_further() -> None:
    found = []
    for rate in (1.0, 4.0):
        torch.manual_seed(0)
        classifier = DomainClassifier(2, 3, rate).double()
        x, domain = torch.arange(12.0).view(4, 3).double().cos(), torch.tensor([0, 1, 1, 0])
        before = classifier(x).detach()
        optimiser = torch.optim.Adam(classifier.parameters(), 1e-3)
        classifier.loss(x, domain).backward()
        optimiser.step()
        found.append((before, classifier(x).detach() - before))
    (one, moved), (other, further) = found
    torch.testing.assert_close(other, one)
    torch.testing.assert_close(further, 4 * moved, rtol=1e-4, atol=1e-7)
