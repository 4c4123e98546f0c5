"""MAN: each attention by hand, whole scores written out in plain Python, stopped gradients, independent updating, growth."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor, nn

from isthmus.batch import Batch, Needs
from isthmus.data import split
from isthmus.data.batches import Plan, batches
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.events import Events, read_events
from isthmus.errors import ConfigError
from isthmus.fit import fit
from isthmus.grow import Translated, grow
from isthmus.how import How
from isthmus.layers.encoders import available
from isthmus.layers.encoders._base import Encoder
from isthmus.layers.local_global import LocalGlobal
from isthmus.layers.mixed_attention import GroupAttention, GroupPrototypes, ItemSimilarity, LocalPart, Mixed, SequenceFusion
from isthmus.layers.sequence import Left, Own
from isthmus.layers.table import Table, optimisers
from isthmus.model import Model
from isthmus.models.man import MAN
from isthmus.models.man_dot import MANDot
from isthmus.run import build
from isthmus.schema import Domain, Entity, Schema
from isthmus.stages import Adaptation
from isthmus.task import get_task

ENCODERS = sorted(available())
SMALL = {"man": {"dim": 4, "domain_dim": 2, "groups": 3, "hidden": (12, 8)}, "man_dot": {"dim": 4, "domain_dim": 2, "groups": 3}}
MODELS = ("man", "man_dot")
PARTS = {"item_similarity": "item", "sequence_fusion": "fusion", "group_prototypes": "group"}
both = pytest.mark.parametrize("name", MODELS)
with_each_encoder = pytest.mark.parametrize("encoder", ENCODERS)
MANs = MAN | MANDot


class Plain(Encoder):
    """A linear map of each event."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim)
        self.map = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x)


def set_(weight: object, values: object) -> None:
    assert isinstance(weight, Tensor)
    with torch.no_grad():
        weight.copy_(torch.tensor(values))


def schema_of(domains: int) -> Schema:
    """Eight items, the last one unknown to training."""
    return Schema(Entity("user", (), 6, 6), Entity("item", (), 7, 8), tuple(Domain(str(d)) for d in range(domains)), label="click")


def shaken(name: str, domains: int = 2, **args: object) -> MANs:
    """A small model whose every weight has a say."""
    model = build(name, schema_of(domains), {**SMALL[name], **args}, seed=0)
    assert isinstance(model, (MAN, MANDot))
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(1)
        for weight in model.parameters():
            weight += 0.3 * torch.randn_like(weight)
        for table in (m for m in model.modules() if isinstance(m, Table)):
            table.weight[0] = 0.0
        if isinstance(model, MAN):
            model.levels.level.copy_(torch.arange(float(domains)) / 8)
    return model.eval()


def batch_of(domains: int = 2, length: int = 5) -> Batch:
    """Three rows of each domain: a full history, two events, none; three candidates each."""
    draw, rows = torch.Generator().manual_seed(0), 3 * domains
    history = torch.randint(1, 8, (rows, length), generator=draw)
    history[1::3, :-2] = 0
    history[2::3] = 0
    return Batch(
        user=torch.randint(1, 6, (rows,), generator=draw),
        item=torch.randint(1, 8, (rows, 3), generator=draw),
        domain=torch.arange(domains).repeat_interleave(3),
        offsets=tuple(range(0, rows + 1, 3)),
        label=torch.tensor([[1.0, 0.0, 0.0]]).repeat(rows, 1),
        history=history,
    )


def of_domain(batch: Batch, domain: int) -> Batch:
    """Its rows alone."""
    rows = torch.arange(*batch.offsets[domain : domain + 2])
    return dataclasses.replace(batch.take(rows, batch.domain[rows]), label=None if batch.label is None else batch.label[rows])


@torch.no_grad()
def logits(model: Model, batch: Batch) -> Tensor:
    return model(batch).logit


def terms(model: MANs, batch: Batch) -> dict[str, Tensor]:
    """What a batch loses in training, for the model's first task."""
    return model.stages()[0].terms(model, batch, get_task(model.tasks[0]).loss)


def trained(model: MANs, batch: Batch) -> float:
    """Gradients of a batch's loss; returns the loss."""
    model.train().zero_grad()
    with torch.random.fork_rng():
        torch.manual_seed(0)  # in a model this small what is dropped decides which weights have a say
        loss = torch.stack(list(terms(model, batch).values())).sum()
    loss.backward()
    return loss.item()


def moved(weight: Tensor) -> bool:
    return weight.grad is not None and bool(weight.grad.to_dense().any())


# ---------------------------------------------------------------- by hand


def test_item_similarity_by_hand() -> None:
    net = ItemSimilarity(1, (1, 1))
    for layer, weight in ((net.asked, 3.0), (net.event, 2.0), (net.rest[0], 1.0), (net.rest[2], 1.0)):
        set_(layer.weight, [[weight]])
    set_(net.asked.bias, [1.0])
    set_(net.rest[0].bias, [30.0])
    event = torch.tensor([[[0.0], [math.log(3) / 2], [9.0]]])
    real = torch.tensor([[[True, True, False]]])
    # Candidate 0: relu(1 + 2 e) = 1 and 1 + ln 3, and 30: a quarter and three quarters.  Candidate -9: relu(-26 + 2 e) = 0 twice.
    found = net(torch.tensor([[[0.0], [-9.0]]]), event, real)
    torch.testing.assert_close(found, torch.tensor([[[0.75 * math.log(3) / 2], [0.5 * math.log(3) / 2]]]))


def test_sequence_fusion_by_hand() -> None:
    net = SequenceFusion(2)
    for layer in (net.query, net.key):
        set_(layer.weight, [[1.0, 0.0], [0.0, 1.0]])
    set_(net.value.weight, [[0.0, 0.0], [4.0, 0.0]])
    set_(net.mlp[1].weight, [[0.0, 2.0], [1.0, 0.0]])
    set_(net.mlp[1].bias, [0.5, 0.0])
    local, other = torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[math.sqrt(2) * math.log(3), 0.0], [0.0, 0.0], [9.0, 9.0]]])
    # Scores over sqrt(2) are ln 3 and 0, so the answer is (0, 3/4 * 4 sqrt(2) ln 3) = (0, 4.66), and (1, 4.66) with S itself.
    plain = SequenceFusion(2)
    plain.load_state_dict(net.state_dict())
    plain.mlp = nn.Sequential()
    real = torch.tensor([[[True, True, False]]])
    torch.testing.assert_close(plain(local, other, real), torch.tensor([[[1.0, 3 * math.sqrt(2) * math.log(3)]]]))
    # The first norm makes it (-1, 1); the layer relu(2.5, -1) = (2.5, 0); the second norm (1, -1).
    torch.testing.assert_close(net(local, other, real), torch.tensor([[[1.0, -1.0]]]), rtol=0, atol=1e-4)


def groups_by_hand() -> GroupAttention:
    net = GroupAttention(2, 1, 3)
    set_(net.pool, [[1.0, 10.0, 100.0], [0.0, 1.0, 0.0]])
    for layer in (net.relevance[0], net.relevance[2], net.query, net.key, net.mlp[0], net.mlp[2]):
        set_(layer.weight, [[1.0]])
    for layer in (net.relevance[0], net.mlp[0], net.mlp[2]):
        set_(layer.bias, [0.0])
    set_(net.value.weight, [[2.0]])
    return net


def test_relevance_is_pooled_by_places_from_the_last_event_by_hand() -> None:
    net = groups_by_hand()
    state = torch.tensor([[[7.0], [2.0], [3.0], [5.0]], [[4.0], [6.0], [8.0], [8.0]]])
    real = torch.tensor([[[True] * 4], [[True, True, False, False]]])
    age = torch.tensor([[[3, 2, 1, 0]], [[1, 0, -1, -2]]])
    # 5 + 10 * 3 + 100 * 2, and 3: what is four events back has no weight.  6 + 10 * 4, and 4: padding neither.
    assert net.pooled(state, age, real)[:, 0, :, 0].tolist() == [[235.0, 3.0], [46.0, 4.0]]


def test_groups_ask_the_sequence_and_are_weighted_by_relevance_by_hand() -> None:
    net = groups_by_hand()
    prototype, state = torch.tensor([[0.0], [math.log(3)]]), torch.tensor([[[0.0], [1.0], [9.0]]])
    age, real = torch.tensor([[[1, 0, -1]]]), torch.tensor([[[True, True, False]]])
    # Group 1 attends 1/2 and 1/2, group 2 1/4 and 3/4; values are twice the states: 1 and 1.5 (eq. 11).
    # Pooled: 1 * 1 + 10 * 0 = 1, and 0, so the shares are those of (1, 0) (eq. 10, 12).
    group, share = net(prototype, state, age, real)
    first = math.e / (math.e + 1)
    torch.testing.assert_close(share, torch.tensor([[[first, 1 - first]]]))
    torch.testing.assert_close(group, torch.tensor([[[first + 1.5 * (1 - first)]]]))
    set_(net.relevance[0].bias, [-2.0])  # relu: relevance 0 of both
    torch.testing.assert_close(net(prototype, state, age, real)[0], torch.tensor([[[1.25]]]))


@pytest.mark.parametrize(
    ("bounded", "prototype", "total"),
    [(False, [[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]], 25 + 1 + 18), (True, [[5.0, 0.0], [0.0, 2.0], [-1.0, 0.0]], 2 + 4 + 2)],
)
def test_disentanglement_by_hand(bounded: bool, prototype: list[list[float]], total: float) -> None:
    net = GroupPrototypes(3, 2, weight=0.5, bounded=bounded)
    set_(net.prototype, prototype)
    assert net.disentangle().item() == pytest.approx(-0.5 * total, rel=1e-6)


# ---------------------------------------------------------------- whole scores, in plain Python

Vector = list[float]


def dot(a: Vector, b: Vector) -> float:
    return sum(x * y for x, y in zip(a, b, strict=True))


def add(*vectors: Vector) -> Vector:
    return [sum(x) for x in zip(*vectors, strict=True)]


def mix(weights: Sequence[float], vectors: list[Vector]) -> Vector:
    return add(*([w * x for x in v] for w, v in zip(weights, vectors, strict=True)))


def softmax(x: Sequence[float]) -> list[float]:
    e = [math.exp(v - max(x)) for v in x]
    return [v / sum(e) for v in e]


def run(layers: nn.Module, x: Vector) -> Vector:
    """A network of the kinds of layers used here, one number at a time."""
    for layer in (m for m in layers.modules() if not list(m.children())):
        if isinstance(layer, nn.Linear):
            bias = [0.0] * layer.out_features if layer.bias is None else layer.bias.tolist()
            x = [dot(row, x) + b for row, b in zip(layer.weight.tolist(), bias, strict=True)]
        elif isinstance(layer, nn.LayerNorm):
            mean = sum(x) / len(x)
            std = math.sqrt(sum((v - mean) ** 2 for v in x) / len(x) + layer.eps)
            x = [(v - mean) / std * w + b for v, w, b in zip(x, layer.weight.tolist(), layer.bias.tolist(), strict=True)]
        elif isinstance(layer, nn.ReLU):
            x = [max(v, 0.0) for v in x]
    return x


def attend(net: SequenceFusion | GroupAttention, asks: list[Vector], answers: list[Vector]) -> list[Vector]:
    """CA (eq. 8, 9)."""
    key, value = [run(net.key, s) for s in answers], [run(net.value, s) for s in answers]
    scores = [[dot(run(net.query, q), k) / math.sqrt(len(k)) for k in key] for q in asks]
    return [mix(softmax(row), value) for row in scores]


@dataclasses.dataclass
class Slow:
    """One row of one domain, without padding: E^A and E^Ag, S^A and S^Ag."""

    model: MANs
    domain: int
    history: list[int]

    def __post_init__(self) -> None:
        vectors, self.part = self.model.vectors, self.model.local.copies[self.domain]
        assert isinstance(self.part, LocalPart)
        begin = vectors.begin.tolist()
        pairs = [self.item(0), *(self.item(code) for code in self.history)]
        place = [self.part.places.place[t].tolist() for t in range(len(pairs))]
        place_all = [vectors.places.place[t].tolist() for t in range(len(pairs))]
        more = [begin, *([0.0] * len(begin) for _ in self.history)]
        self.own = [add(a, p, m) for (a, _), p, m in zip(pairs, place, more, strict=True)]
        self.shared = [add(g, p, m) for (_, g), p, m in zip(pairs, place_all, more, strict=True)]
        with torch.no_grad():
            self.local = self.part.encoder(torch.tensor([self.own]))[0].tolist()
            self.state = vectors.encoder(torch.tensor([self.shared]))[0].tolist()

    def item(self, code: int) -> tuple[Vector, Vector]:
        """Local and global vector of an item."""
        vectors, known = self.model.vectors, self.model.schema.item.trained
        beside = vectors.domain.weight[self.domain + 1].tolist()
        row = 1 + self.domain * known + code if 1 < code < known else 0
        here, everywhere = vectors.here.table.weight[row], vectors.everywhere.table.weight[code if code < known else 1]
        return here.tolist() + beside, everywhere.tolist() + beside

    def similar(self, asked: Vector) -> Vector:
        """e (eq. 5, 6), the first layer on m || E + E_g as printed."""
        net = self.part.item
        assert isinstance(net, ItemSimilarity)
        event = [add(a, g) for a, g in zip(self.own, self.shared, strict=True)]
        first = [add(run(net.asked, asked), run(net.event, x)) for x in event]
        return mix(softmax([run(net.rest, [max(v, 0.0) for v in x])[0] for x in first]), event)

    def fused(self) -> list[Vector]:
        """S^As (eq. 7-9), a vector for each place."""
        assert isinstance(self.part.fusion, SequenceFusion)
        answers = attend(self.part.fusion, self.local, self.state)
        return [run(self.part.fusion.mlp, add(ca, s)) for ca, s in zip(answers, self.local, strict=True)]

    def group(self) -> Vector:
        """g^Au (eq. 10-12)."""
        net, groups = self.part.group, self.model.groups
        assert isinstance(net, GroupAttention)
        assert groups is not None
        back = self.local[::-1]
        pooled = [mix(row[: len(back)], back[: len(row)]) for row in net.pool.tolist()]  # W_P S
        share = softmax([run(net.relevance, x)[0] for x in pooled])
        return mix(share, [run(net.mlp, x) for x in attend(net, groups.prototype.tolist(), self.local)])

    def mean(self, states: list[Vector]) -> Vector:
        return mix([1 / len(states)] * len(states), states)


def slow_man(model: MAN, domain: int, history: list[int], code: int) -> float:
    """Eq. 14."""
    row = Slow(model, domain, history)
    here, everywhere = row.item(code)
    m = add(here, everywhere)
    x = row.similar(m) + row.mean(row.fused()) + row.group() + row.mean(row.local) + m
    y = run(model.predict.copies[domain], x)[0] + run(model.predict_all, row.mean(row.state) + everywhere)[0]
    return y + model.levels.level[domain].item()


def slow_state(model: MANDot, domain: int, history: list[int]) -> Vector:
    row = Slow(model, domain, history)
    asked, own = add(row.own[-1], row.shared[-1]), row.local[-1]
    assert model.predict is not None
    more = run(model.predict.copies[domain], row.similar(asked) + row.fused()[-1] + row.group() + own)
    return [*add(own, more), *row.state[-1], 1.0]


def rows_of(batch: Batch) -> list[tuple[int, list[int], list[int]]]:
    """Domain, history without padding, candidates."""
    assert batch.history is not None
    parts = zip(batch.domain.tolist(), batch.history.tolist(), batch.item.tolist(), strict=True)
    return [(domain, [code for code in history if code], items) for domain, history, items in parts]


@with_each_encoder
@pytest.mark.parametrize("length", [51, 3])
def test_scores_written_out(encoder: str, length: int) -> None:
    model, batch = shaken("man", encoder=encoder, length=51), batch_of()
    assert isinstance(model, MAN)
    for part in model.local.copies:  # histories longer than what the groups look back at
        assert isinstance(part.group, GroupAttention)
        part.group.pool = nn.Parameter(part.group.pool[:, :length].detach())
    slow = [[slow_man(model, domain, history, code) for code in items] for domain, history, items in rows_of(batch)]
    torch.testing.assert_close(logits(model, batch), torch.tensor(slow), rtol=1e-4, atol=1e-4)


@with_each_encoder
def test_the_state_after_each_event_written_out_from_what_was_before(encoder: str) -> None:
    model, batch = shaken("man_dot", encoder=encoder), batch_of(length=4)
    assert isinstance(model, MANDot)
    with torch.no_grad():
        states = model.states(batch)
    for found, (domain, history, _) in zip(states, rows_of(batch), strict=True):
        for back in range(4):  # events that are not yet known
            slow = slow_state(model, domain, history[: max(0, len(history) - back)])
            torch.testing.assert_close(found[3 - back], torch.tensor(slow), rtol=1e-4, atol=1e-4)


def test_man_dots_score_is_local_and_global_prediction_as_dot_products() -> None:
    model, batch = shaken("man_dot"), batch_of()
    assert isinstance(model, MANDot)
    assert model.bias is not None
    slow = []
    for domain, history, items in rows_of(batch):
        state = slow_state(model, domain, history)
        known = [1 + domain * 7 + code if 1 < code < 7 else 0 for code in items]
        bias = [model.bias.table.weight[row].item() for row in known]
        pairs = (Slow(model, domain, []).item(code) for code in items)
        slow.append([dot(state, [*here, *everywhere, b]) for (here, everywhere), b in zip(pairs, bias, strict=True)])
    torch.testing.assert_close(logits(model, batch), torch.tensor(slow), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("events", [True, False])
def test_an_item_dropped_in_training_is_unknown_in_both_spaces(events: bool) -> None:
    vectors = LocalGlobal(schema_of(2), 3, 2, "sasrec", {}, 300, std=1.0, id_dropout=0.3).train()
    item, domain = torch.full((1, 299), 3), torch.zeros(1, 299, dtype=torch.int64)
    if events:
        left = dataclasses.replace(Left.of(of_domain(batch_of(), 0)), item=item, domain=domain)
        shared, _, here = vectors(left)
        here, everywhere = here[:, 1:], (shared - vectors.places(torch.zeros_like(shared)))[:, 1:]
    else:
        here, everywhere = vectors.items(item, domain)
    dropped = (here[..., :3] == 0).all(-1)
    assert 0.2 < dropped.double().mean().item() < 0.4
    unknown, known = vectors.everywhere.table.weight[1], vectors.everywhere.table.weight[3]
    torch.testing.assert_close(everywhere[..., :3], torch.where(dropped[..., None], unknown, known))
    assert not torch.equal(unknown, torch.zeros(3))


def test_nothing_is_dropped_when_asked_for_scores_and_id_dropout_can_be_left_out() -> None:
    vectors = LocalGlobal(schema_of(2), 3, 2, "sasrec", {}, 51, std=1.0, id_dropout=0.3).eval()
    here, _ = vectors.items(torch.full((1, 200), 3), torch.zeros(1, 200, dtype=torch.int64))
    assert (here == here[0, 0]).all()
    for name, dropped in (("man", 0.05), ("man_dot", 0.0)):
        model = shaken(name)
        assert model.vectors.everywhere.id_dropout == dropped
    assert build("man", schema_of(2), {**SMALL["man"], "id_dropout": 0.0}, seed=0).vectors.everywhere.id_dropout == 0.0  # type: ignore[attr-defined]


# ---------------------------------------------------------------- stopped gradients (A.3)


def mixed_of(whole: bool) -> tuple[LocalPart, LocalGlobal, Tensor, Mixed]:
    """A domain's part, the shared vectors, the prototypes, and what the part says, with gradients."""
    model, batch = shaken("man"), of_domain(batch_of(), 0)
    part, left = model.local.copies[0], Left.of(batch)
    assert isinstance(part, LocalPart)
    assert model.groups is not None
    shared, state, event = model.vectors(left)
    if not whole:
        return part, model.vectors, model.groups.prototype, part.each(event, shared, state, model.groups.prototype)
    real = torch.arange(event.shape[1]) <= left.count[:, None]
    return part, model.vectors, model.groups.prototype, part.whole(event, shared, state, real, event[:, :2], model.groups.prototype)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    ("said", "own", "everywhere", "groups"),
    [("fused", False, False, False), ("group", False, False, True), ("local", True, False, False), ("item", False, False, False)],
)
def test_which_encoder_learns_from_what(whole: bool, said: str, own: bool, everywhere: bool, groups: bool) -> None:
    part, vectors, prototype, mixed = mixed_of(whole)
    value = getattr(mixed, said)
    (value * torch.randn(value.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    assert any(moved(w) for w in part.encoder.parameters()) is own
    assert any(moved(w) for w in vectors.encoder.parameters()) is everywhere
    assert moved(prototype) is groups
    assert moved(part.places.place) is (said in ("local", "item")), "events learn from item similarity, and through their encoder"
    assert moved(vectors.places.place) is (said == "item")
    layers = {"fused": part.fusion, "group": part.group, "local": part.encoder, "item": part.item}
    for name, layer in layers.items():
        assert layer is not None
        assert all(moved(w) for w in layer.parameters()) is (name == said), name


@both
def test_both_encoders_learn_from_the_prediction_layers(name: str) -> None:
    model = shaken(name, item_similarity=False, sequence_fusion=False, group_prototypes=False)
    model(batch_of()).logit[:3].sum().backward()
    part = model.local.copies[0]
    assert isinstance(part, LocalPart)
    assert all(moved(w) for w in part.encoder.parameters())
    assert all(moved(w) for w in model.vectors.encoder.parameters())


# ---------------------------------------------------------------- padding, groups, domains, ablations


@both
@with_each_encoder
def test_padding_never_changes_a_score(name: str, encoder: str) -> None:
    model, batch = shaken(name, encoder=encoder), batch_of()
    assert batch.history is not None
    scores = logits(model, batch)
    assert scores.std() > 1e-2
    for wider in (1, 60):
        history = nn.functional.pad(batch.history, (wider, 0))
        torch.testing.assert_close(logits(model, dataclasses.replace(batch, history=history)), scores, rtol=1e-5, atol=1e-5)
    for row, (start, count) in enumerate(zip([0, 0, 0, 3, 3, 3], [5, 2, 0] * 2, strict=True)):  # alone, and trimmed
        domain = start // 3
        one = batch.take(torch.tensor([row]), batch.domain[[row]])
        assert one.history is not None
        trimmed = dataclasses.replace(one, history=one.history[:, 5 - count :])
        assert trimmed.offsets == ((0, 1, 1), (0, 0, 1))[domain]
        torch.testing.assert_close(logits(model, trimmed)[0], scores[row], rtol=1e-5, atol=1e-5)


def test_bounded_prototypes_stay_and_printed_ones_run_away() -> None:
    torch.manual_seed(0)
    kept, printed = (GroupPrototypes(5, 4, weight=1e-3, bounded=bounded) for bounded in (True, False))
    optimiser = torch.optim.Adam([kept.prototype, printed.prototype], lr=1e-2, fused=True)
    halfway = 0.0
    for step in range(10_000):
        optimiser.zero_grad()
        (kept.disentangle() + printed.disentangle()).backward()
        optimiser.step()
        halfway = printed.disentangle().item() if step == 4999 else halfway
    assert -1e-3 * 25 * 1.001 <= kept.disentangle().item() < -1e-3 * 25 * 0.99, "-lambda times the square of their number, at most"
    assert kept.prototype.norm(dim=1).max() < 3
    assert printed.disentangle().item() < 3 * halfway < -100
    assert printed.prototype.norm(dim=1).min() > 100


@both
@pytest.mark.parametrize("groups", [1, 5, 10, 20])
def test_any_number_of_groups(name: str, groups: int) -> None:
    model, batch = shaken(name, groups=groups), batch_of()
    assert model.groups is not None
    term = model.groups.disentangle().item()
    assert term == 0 if groups == 1 else -1e-3 * groups**2 <= term < 0
    assert logits(model, batch).isfinite().all()
    trained(model, batch)
    for part in model.local.copies:
        assert isinstance(part, LocalPart)
        assert isinstance(part.group, GroupAttention)
        age, real = torch.zeros(1, 1, 4, dtype=torch.int64), torch.ones(1, 1, 4, dtype=torch.bool)
        said, share = part.group(model.groups.prototype, torch.randn(1, 4, 6), age, real)
        assert (said.shape, share.shape) == ((1, 1, 6), (1, 1, groups))
        assert share.sum().item() == pytest.approx(1)
        assert moved(part.group.pool) is (groups > 1), "of one group everybody is"
    grad = model.groups.prototype.grad
    assert grad is not None
    assert (grad.abs().sum(1) > 0).all()


def test_no_group_is_refused() -> None:
    with pytest.raises(ConfigError, match="1 or more"):
        build("man", schema_of(2), {"groups": 0})


@both
@pytest.mark.parametrize("domains", [1, 2, 5])
def test_any_number_of_domains(name: str, domains: int) -> None:
    model, batch = shaken(name, domains), batch_of(domains)
    scores = logits(model, batch)
    for domain in range(domains):
        torch.testing.assert_close(logits(model, of_domain(batch, domain)), scores[3 * domain : 3 * domain + 3], rtol=1e-5, atol=1e-5)
    trained(model, batch)
    assert [key for key, w in model.named_parameters() if not moved(w)] == []


@both
@pytest.mark.parametrize("domain", [0, 2])
def test_a_batch_of_one_domain_trains_and_leaves_the_others_alone(name: str, domain: int) -> None:
    model, batch = shaken(name, 3), of_domain(batch_of(3), domain)
    before = {key: value.detach().clone() for key, value in model.named_parameters()}
    assert model.predict is not None
    steps, _ = optimisers(model, 1e-2, weight_decay=0.1)
    losses = []
    for _ in range(10):
        losses.append(trained(model, batch))
        for other in {0, 1, 2} - {domain}:
            copies = itertools.chain(model.local.copies[other].parameters(), model.predict.copies[other].parameters())
            assert all(w.grad is None for w in copies), "no gradient at all, so that nothing decays either"
        for step in steps:
            step.step()
    assert losses[-1] < losses[0]
    own = slice(1 + 7 * domain, 1 + 7 * (domain + 1))
    for key, value in model.named_parameters():
        old = before[key]
        if "copies" in key:
            assert torch.equal(value, old) is (f"copies.{domain}." not in key), key
        elif key in ("vectors.here.table.weight", "bias.table.weight"):
            assert not torch.equal(value[own], old[own])
            others = torch.ones(len(value), dtype=torch.bool)
            others[own] = False
            assert torch.equal(value[others], old[others]), key
        elif key == "vectors.domain.weight":
            assert (value != old).any(1).nonzero().flatten().tolist() == [domain + 1]
        else:
            assert not torch.equal(value, old), key


@both
@pytest.mark.parametrize("left_out", PARTS)
def test_an_ablation_removes_exactly_its_part(name: str, left_out: str) -> None:
    full, less = shaken(name), shaken(name, **{left_out: False})
    names, part = ({key for key, _ in m.named_parameters()} for m in (full, less)), PARTS[left_out]
    before, after = names
    gone = {key for key in before if key.startswith("local.copies.") and key.split(".")[3] == part}
    assert gone
    assert before - after == gone | ({"groups.prototype"} if part == "group" else set())
    assert not after - before
    first = next(key for key in sorted(after) if key.startswith("predict.copies.0") and key.endswith("weight"))
    assert full.get_parameter(first).shape[1] - less.get_parameter(first).shape[1] == 6
    assert logits(less, batch_of()).isfinite().all()
    trained(less, batch_of())
    assert [key for key, w in less.named_parameters() if not moved(w)] == []
    assert ("groups" in terms(less, batch_of())) is (part != "group")


@pytest.mark.parametrize("left_out", PARTS)
@pytest.mark.parametrize("whole", [True, False])
def test_what_is_not_left_out_says_the_same(whole: bool, left_out: str) -> None:
    torch.manual_seed(0)
    names = {"item_similarity": "item", "sequence_fusion": "sequence", "group_prototypes": "group"}
    full = LocalPart(Plain(4), 4, 3, 9)
    less = LocalPart(Plain(4), 4, 3, 9, **{names[left_out]: False})
    assert less.load_state_dict(full.state_dict(), strict=False).missing_keys == []
    event, shared, state, prototype = torch.randn(2, 5, 4), torch.randn(2, 5, 4), torch.randn(2, 5, 4), torch.randn(3, 4)
    real = torch.arange(5) <= torch.tensor([[4], [2]])
    a, b = (
        part.whole(event, shared, state, real, event[:, :2], prototype) if whole else part.each(event, shared, state, prototype)
        for part in (full, less)
    )
    gone = {"item_similarity": "item", "sequence_fusion": "fused", "group_prototypes": "group"}[left_out]
    for said in ("item", "fused", "group", "local"):
        if said == gone:
            assert not getattr(b, said).any()
            assert getattr(a, said).any()
        else:
            assert torch.equal(getattr(a, said), getattr(b, said)), said
    assert (b.share is None) is (gone == "group")


# ---------------------------------------------------------------- after every event


@with_each_encoder
def test_a_state_knows_nothing_of_later_events(encoder: str) -> None:
    model, batch = shaken("man_dot", encoder=encoder), batch_of(length=6)
    assert isinstance(model, MANDot)
    assert batch.history is not None
    with torch.no_grad():
        states = model.states(batch)
        for column in range(6):
            history = batch.history.clone()
            history[[0, 3], column] = 7 - history[[0, 3], column] % 5
            changed = model.states(dataclasses.replace(batch, history=history))
            torch.testing.assert_close(changed[:, :column], states[:, :column], rtol=0, atol=1e-6)
            assert (changed[[0, 3], column] - states[[0, 3], column]).abs().amax(1).min() > 1e-3, "its own it does know"
            torch.testing.assert_close(changed[[1, 2, 4, 5]], states[[1, 2, 4, 5]], rtol=0, atol=1e-6)


def test_after_the_last_event_each_agrees_with_whole() -> None:
    torch.manual_seed(0)
    part, prototype = LocalPart(Plain(4), 4, 3, 3), torch.randn(3, 4)  # groups look back at three events
    event, shared, state = (torch.randn(2, 5, 4) for _ in range(3))
    each = part.each(event, shared, state, prototype)
    for count in range(1, 6):
        real, last = torch.arange(5) < torch.tensor([[count], [count]]), count - 1
        asked = (part.places(event) + shared)[:, [last]]
        whole = part.whole(event, shared, state, real, asked, prototype)
        assert whole.share is not None
        assert each.share is not None
        assert part.fusion is not None
        torch.testing.assert_close(each.group[:, last], whole.group[:, 0])
        torch.testing.assert_close(each.share[:, last], whole.share[:, 0])
        torch.testing.assert_close(each.item[:, last], whole.item[:, 0])
        torch.testing.assert_close(each.local[:, :count].mean(1), whole.local[:, 0])
        rows = part.fusion(each.local, state, real[:, None])  # as printed every place sees the whole history, and their mean counts
        torch.testing.assert_close(each.fused[:, last], rows[:, last])
        torch.testing.assert_close(rows[:, :count].mean(1), whole.fused[:, 0])


# ---------------------------------------------------------------- times


def test_gaps_between_events_by_hand() -> None:
    batch = batch_of(domains=1)
    assert Left.of(batch, timed=True).gaps("s") is None
    batch.history_time = torch.tensor([[10, 10, 70, 60, 3670], [9, 9, 9, 100, 4], [0, 0, 0, 0, 0]])  # of no event anything
    year = math.log1p(365 * 24 * 3600)
    one, hour = math.log1p(60) / year, math.log1p(3610) / year
    found = Left.of(batch, timed=True).gaps("s")
    assert found is not None
    torch.testing.assert_close(found, torch.tensor([[0.0, 0, 0, one, 0, hour], [0.0] * 6, [0.0] * 6]))
    steps = Left.of(batch, timed=True).gaps("ms")
    assert steps is not None
    assert steps[0, 5].item() == pytest.approx(math.log1p(3.61) / year)
    batch.history, batch.history_time = batch.history[:, :0] if batch.history is not None else None, batch.history_time[:, :0]
    none = Left.of(batch, timed=True).gaps("s")
    assert none is not None
    assert none.tolist() == [[0.0]] * 3


@both
def test_a_timed_encoder_is_told_when_events_were(name: str) -> None:
    timed, plain, batch = shaken(name, encoder="sli_rec"), shaken(name), batch_of()
    assert (timed.needs.history_time, plain.needs.history_time) == (True, False)
    batch.history_time = torch.arange(30).view(6, 5) * 1000
    soon, late = batch, dataclasses.replace(batch, history_time=batch.history_time**3)
    assert (logits(timed, soon) - logits(timed, late)).abs().max() > 1e-4
    assert torch.equal(logits(plain, soon), logits(plain, late))
    with pytest.raises(ConfigError, match="merged histories have no times"):
        build("man_dot", schema_of(2), {"encoder": "sli_rec", "merged": True}, seed=0)


# ---------------------------------------------------------------- merged histories


def merged_of(batch: Batch, share: float = 0.5) -> Batch:
    """Its histories as merged ones: of their events a share was in the other domain."""
    assert batch.history is not None
    there = batch.history > 0
    other = there & (torch.rand(batch.history.shape, generator=torch.Generator().manual_seed(3)) < share)
    whose = torch.where(other, 1 - batch.domain[:, None], batch.domain[:, None]).masked_fill(~there, -1)
    return dataclasses.replace(batch, history=None, merged_history=batch.history, merged_domain=whose)


def test_the_own_part_of_a_merged_history_by_hand() -> None:
    left = Left(torch.tensor([[0, 5, 6, 7, 0], [0, 4, 0, 0, 0]]), torch.tensor([[0, 1, 0, 1, 0], [1, 1, 1, 1, 1]]), torch.tensor([3, 1]), 4)
    own = Own.of(left)
    assert own.slot.tolist() == [[0, 2], [0, 1]]
    assert own.after.tolist() == [[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]]
    x = torch.arange(10.0).view(2, 5, 1)
    assert own.taken(x).flatten().tolist() == [0.0, 2.0, 5.0, 6.0]
    assert own.spread(own.taken(x))[..., 0].tolist() == [[0.0, 0.0, 2.0, 2.0, 2.0], [5.0, 6.0, 6.0, 6.0, 6.0]]
    assert own.rows(slice(1, 2)).after.tolist() == [[0, 1, 1, 1, 1]]


def test_merged_histories_of_one_domain_are_its_own() -> None:
    model, merged, batch = shaken("man_dot"), shaken("man_dot", merged=True), batch_of()
    assert isinstance(model, MANDot)
    assert isinstance(merged, MANDot)
    assert (merged.needs.merged_history, merged.needs.history, model.needs.history) == (True, False, True)
    merged.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(merged.states(merged_of(batch, 0.0)), model.states(batch))
        assert (merged.states(merged_of(batch)) - model.states(batch)).abs().max() > 1e-2


def test_the_domain_s_encoder_reads_its_own_events_alone() -> None:
    model = shaken("man_dot", merged=True, item_similarity=False, sequence_fusion=False, group_prototypes=False, bias=False)
    assert isinstance(model, MANDot)
    batch = merged_of(batch_of(length=6))
    assert batch.merged_history is not None
    assert batch.merged_domain is not None
    foreign = (batch.merged_domain >= 0) & (batch.merged_domain != batch.domain[:, None])
    assert foreign[0].any()
    assert foreign[3].any()
    other = torch.where(foreign, batch.merged_history % 7 + 1, batch.merged_history)
    with torch.no_grad():
        before, after = model.states(batch), model.states(dataclasses.replace(batch, merged_history=other))
    half = before.shape[2] // 2
    torch.testing.assert_close(after[..., :half], before[..., :half])
    assert (after - before)[[0, 3], -1, half:].abs().amax(1).min() > 1e-3


def test_a_merged_state_knows_nothing_of_later_events() -> None:
    model, batch = shaken("man_dot", merged=True), merged_of(batch_of(length=6))
    assert isinstance(model, MANDot)
    assert batch.merged_history is not None
    with torch.no_grad():
        states = model.states(batch)
        for column in range(6):
            history = batch.merged_history.clone()
            history[[0, 3], column] = 7 - history[[0, 3], column] % 5
            changed = model.states(dataclasses.replace(batch, merged_history=history))
            torch.testing.assert_close(changed[:, :column], states[:, :column], rtol=0, atol=1e-6)
            assert (changed[[0, 3], column] - states[[0, 3], column]).abs().amax(1).min() > 1e-3, "its own it does know"


def test_rows_that_know_events_elsewhere_touch_no_other_domain_s_weights() -> None:
    model = shaken("man_dot", merged=True)
    batch = merged_of(of_domain(batch_of(), 0))
    trained(model, batch)
    assert not [name for name, w in model.named_parameters() if ".copies.1." in name and moved(w)]
    rows = dict(model.named_parameters())["vectors.here.table.weight"].grad
    assert rows is not None
    touched = rows.to_dense().any(1).nonzero().flatten()
    known = model.schema.item.trained
    assert len(touched) > 2
    assert int(touched.max()) < 1 + known, "domain 0's rows come first"


# ---------------------------------------------------------------- a domain that joins later


def events_of(domains: Sequence[str]) -> Events:
    rng, n = np.random.default_rng(0), 300
    frame = pl.DataFrame(
        {
            "user": [f"u{i}" for i in rng.integers(0, 30, n)],
            "item": [f"i{i}" for i in rng.integers(0, 20, n)],
            "domain": rng.choice(["a", "b", "c"], n),
            "time": rng.permutation(n),
        }
    ).with_columns(item=pl.when(pl.col("domain") == "c").then("c" + pl.col("item")).otherwise("item"))
    shared = frame.with_columns(item=pl.when(pl.col("time") % 3 == 0).then(pl.col("item").str.strip_prefix("c")).otherwise("item"))
    return read_events(shared.filter(pl.col("domain").is_in(list(domains))), user="user", item="item", domain="domain", time="time")


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Dataset]:
    """Two domains, and three; the third one has some of their items."""
    folder = tmp_path_factory.mktemp("man")
    few, every = events_of("ab"), events_of("abc")
    base = encode(few, split.global_time(few), folder / "base")
    return base, encode(every, split.global_time(every), folder / "every", base=base)


def draw(dataset: Dataset, domains: tuple[int, ...]) -> Batch:
    stream = batches(
        dataset, "valid", Needs(history=True), Plan(batch_size=256, negatives=3, history_length=6, domains=domains), prefetch=0
    )
    batch = next(stream)
    stream.close()
    return batch


@both
def test_a_domain_that_joins_later_trains_alone(name: str, pair: tuple[Dataset, Dataset]) -> None:
    base, every = pair
    task, how = get_task("next_item"), How(epochs=3, batch_size=64, lr=1e-2, weight_decay=0.1, device="cpu", progress=False, patience=None)
    model = fit(build(name, base.schema, SMALL[name], seed=0), base, task, dataclasses.replace(how, epochs=1)).model
    batch, scores = (old := draw(base, (0, 1))), logits(model.eval(), old)
    grown = grow(model, every)
    assert isinstance(grown, (MAN, MANDot))
    assert torch.equal(logits(Translated(grown, base, every).eval(), batch), scores), "bit for bit"
    fresh = logits(grown, draw(every, (2,)))
    before = {key: value.clone() for key, value in grown.state_dict().items()}
    adapted = fit(grown, every, task, how, adaptation=Adaptation((2,), (base.schema.item.trained, every.schema.item.trained))).model
    assert torch.equal(logits(Translated(adapted, base, every).eval(), batch), scores), "what serves the old domains stood still"
    assert not torch.equal(logits(adapted.eval(), draw(every, (2,))), fresh)
    changed = {key for key, value in adapted.state_dict().items() if not torch.equal(value, before[key])}
    assert {key.rpartition(".copies.2.")[0] for key in changed if ".copies." in key} == {"local", "predict"}
    tables = {"vectors.here.table.weight", "vectors.everywhere.table.weight", "vectors.domain.weight", "bias.table.weight"}
    assert {key for key in changed if ".copies." not in key} == {t for t in tables if t in before}, "of what all share, new rows alone"
