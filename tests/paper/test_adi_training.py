"""ADI as a whole: who meets whose weights, self-training (Algorithm 1, eq. 4, 5 and 27), and a world whose answer is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from isthmus.batch import Batch, Pool
from isthmus.errors import ConfigError
from isthmus.layers.table import Table
from isthmus.models.adi import ADI
from isthmus.schema import Domain, Entity, Schema
from isthmus.task import get_task

DOMAINS, ITEMS, USERS = 3, 12, 9
SCHEMA = Schema(Entity("user", (), USERS, USERS), Entity("item", (), ITEMS, ITEMS), tuple(Domain(d) for d in "abc"))
Pairs = set[tuple[int, int]]


def shown(model: ADI, pairs: Pairs) -> None:
    """Which (domain, item) pairs the model's domains can show."""
    model.shows.fill(keys=torch.tensor(sorted(d * model.shows.size + i for d, i in pairs), dtype=torch.int64))


def adi(**changes: Any) -> ADI:
    """In training mode, far from where it starts; no chance in it unless asked for."""
    torch.manual_seed(0)
    model = ADI(SCHEMA, **{"dim": 4, "hidden": (5,), "id_dropout": 0.0, **changes})
    model.towers.items.id_dropout = 0.0
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.5 * torch.randn_like(weight)
        for table in (m for m in model.modules() if isinstance(m, Table)):
            table.weight[0] = 0.0
    shown(model, {(d, i) for d in range(DOMAINS) for i in range(2, ITEMS) if (d + i) % 4})
    return model


def rows(sizes: Sequence[int] = (8, 6, 4), seed: int = 0, **columns: Any) -> Batch:
    """Rows whose items their own domains can show."""
    rng = np.random.default_rng(seed)
    domain = np.repeat(range(DOMAINS), sizes)
    item = np.array([rng.choice([i for i in range(2, ITEMS) if (d + i) % 4]) for d in domain], np.int64)
    n = len(domain)
    history, cross = rng.integers(0, ITEMS, (n, 3)), rng.integers(0, ITEMS, (n, 2))
    ids = (rng.integers(2, USERS, n), item[:, None], domain)
    user, item_, domain_, history_, cross_ = (torch.from_numpy(np.asarray(x, np.int64)) for x in (*ids, history, cross))
    return Batch(user, item_, domain_, tuple(np.cumsum((0, *sizes)).tolist()), history=history_, cross_history=cross_, **columns)


def whole(model: ADI, batch: Batch) -> Batch:
    """The same rows with the catalogues as candidates."""
    size = model.shows.size
    there = torch.tensor([b > a for a, b in zip(batch.offsets, batch.offsets[1:], strict=False)])
    keys = model.shows.keys[there[model.shows.keys // size]]
    domain = keys // size
    own = torch.searchsorted(keys, batch.domain * size + batch.item[:, 0])
    offsets = torch.searchsorted(domain, torch.arange(DOMAINS + 1)).tolist()
    return dataclasses.replace(batch, pool=Pool(keys % size, domain, tuple(offsets), own))


def loss(model: ADI, batch: Batch) -> dict[str, Tensor]:
    (stage,) = model.stages()
    assert stage.loss is not None
    return stage.loss(model, batch, get_task("retrieval").loss)


# ---------------------------------------------------------------- who meets whose weights


def own_parts(model: ADI) -> dict[str, Tensor]:
    """Weights that exist once per domain."""
    return {n: p for n, p in model.named_parameters() if "_tower." in n and p.dim() > 1 and len(p) == DOMAINS and "shared.weight" not in n}


PARTS = [  # settings; how many such weights a tower has; modes in which rows do not meet in a norm either
    ({"fusion": "concat"}, 15, (True, False)),
    ({"fusion": "sum", "adaptation": "attention"}, 11, (True, False)),
    ({"fusion": "network_mul", "adaptation": "linear"}, 8, (True, False)),
    ({"fusion": "concat", "norm": "batch", "placement": "one"}, 7, (False,)),
    ({"fusion": "concat", "norm": "none", "placement": "per_network", "shared": 2, "adaptation": "attention"}, 8, (True, False)),
]


@pytest.mark.parametrize(("changes", "number", "modes"), PARTS)
def test_a_row_never_meets_the_weights_of_another_domain(changes: dict[str, Any], number: int, modes: tuple[bool, ...]) -> None:
    batch, others = rows((4, 4, 4)), [0, 1, 2, 3, 8, 9, 10, 11]
    for training in modes:
        model = adi(**changes).train(training)
        mine = own_parts(model)
        assert len(mine) == 2 * number, sorted(mine)
        before = vectors(model, batch)
        torch.stack([v[4:8].square().sum() for v in before]).sum().backward()  # the rows of b
        for name, p in mine.items():
            assert p.grad is not None
            assert p.grad[1].any(), name
            assert not p.grad[[0, 2]].any(), f"{name}: rows of b reach a or c"
            with torch.no_grad():
                p[1] += torch.randn_like(p[1])
        for old, new in zip(before, vectors(model, batch), strict=True):
            assert torch.equal(old[others], new[others])
            assert (old[4:8] != new[4:8]).any(1).all()


def vectors(model: ADI, batch: Batch) -> tuple[Tensor, Tensor]:
    return model.user_vector(batch), model.item_vector(batch.item[:, 0], batch.domain)


def test_norms_see_their_own_domain_only() -> None:
    """In training a row's vectors do not change with the rows of other domains; with one norm for all they do."""
    for norm, alone in (("domain", True), ("batch", False)):
        model, batch, other = adi(norm=norm, user_id=False), rows((4, 5, 3)), rows((4, 5, 3), seed=1)
        assert batch.history is not None
        assert other.history is not None
        item, history = (torch.cat([a[:4], b[4:]]) for a, b in ((batch.item, other.item), (batch.history, other.history)))
        mixed = dataclasses.replace(batch, item=item, history=history)
        assert all(torch.equal(a[:4], b[:4]) == alone for a, b in zip(vectors(model, batch), vectors(model, mixed), strict=True))


@pytest.mark.parametrize(("placement", "copies"), [("one", {"adapt": 1}), ("per_domain", {"adapt": 3}), ("per_network", {})])
def test_placements_of_the_adaptation_layer(placement: str, copies: dict[str, int]) -> None:
    """Figure 4: 1-SE is everybody's, 3-SE each domain's own, 4-SE each network's own."""
    copies = copies or {"adapt_spec": 3, "adapt_shared.0": 1, "adapt_shared.1": 1}
    batch = rows((4, 4, 4))
    for layer in copies:
        model = adi(placement=placement, shared=2, adaptation="attention").eval()
        found = {n.removesuffix(".query"): len(p) for n, p in model.towers.user_tower.named_parameters() if n.endswith("query")}
        assert found == copies
        before = model.user_vector(batch)
        query = model.towers.user_tower.get_parameter(f"{layer}.query")
        with torch.no_grad():
            query[-1] += 1.0  # the last domain's copy, or the only one
        moved = (model.user_vector(batch) != before).any(1).view(3, 4).all(1)
        assert moved.tolist() == ([True] * 3 if copies[layer] == 1 else [False, False, True])


def test_settings_that_make_no_sense_are_refused() -> None:
    for changes, words in (
        ({"fusion": "concatt"}, "did you mean 'concat'"),
        ({"shared": 0}, "shared >= 1"),
        ({"portion": 1.5}, "0 <= portion <= 1"),
        ({"fusion": "network_mul", "shared": 2}, "set shared=1"),
        ({"fusion": "network_mul", "placement": "per_network"}, "placement='per_domain'"),
    ):
        with pytest.raises(ConfigError, match=words):
            adi(**changes)


# ---------------------------------------------------------------- self-training: the loss


class Given(nn.Module):
    """Stands in for both towers with given numbers: (domains, users) and (domains, items)."""

    def __init__(self, users: list[list[float]], items: list[list[float]]) -> None:
        super().__init__()
        self.users, self.items = nn.Parameter(torch.tensor(users)), nn.Parameter(torch.tensor(items))

    def user(self, batch: Batch) -> Tensor:
        return self.users[batch.domain, batch.user][:, None]

    def item(self, item: Tensor, domain: Tensor) -> Tensor:
        return self.items[domain, item][..., None]


def by_hand() -> tuple[ADI, Batch]:
    """a shows items 2 and 3, whose odds are 1 and 3; b shows 2 and 4, odds 1 and 2 (for user 2: 1 and 4); c has no row."""
    model = ADI(SCHEMA, self_training=True, portion=1.0)
    shown(model, {(0, 2), (0, 3), (1, 2), (1, 4), (2, 2), (2, 3), (2, 4)})
    odds = [[1.0] * 5 for _ in range(3)]
    odds[0][3], odds[1][4], odds[1][3], odds[0][4] = 3.0, 2.0, 50.0, 50.0
    taste = [[1.0] * 6 for _ in range(3)]
    taste[1][2] = 2.0
    model.towers = Given(taste, np.log(odds).tolist())  # type: ignore[assignment]
    user, item = torch.tensor([5, 3, 2, 4]), torch.tensor([[2], [3], [4], [2]])
    return model, Batch(user, item, torch.tensor([0, 0, 1, 1]), (0, 2, 4, 4))


def test_eq_27_by_hand_over_whole_catalogues() -> None:
    model, batch = by_hand()
    pool = Pool(torch.tensor([2, 3, 2, 4]), torch.tensor([0, 0, 1, 1]), (0, 2, 4, 4), torch.tensor([0, 1, 3, 2]))
    terms = loss(model, dataclasses.replace(batch, pool=pool))
    # rows: 1 of 1 + 3 and 3 of 1 + 3 in a; 4 of 1 + 4 and 1 of 1 + 2 in b
    assert terms["loss"].item() == pytest.approx(np.log([4, 4 / 3, 5 / 4, 3]).mean())
    # item 2 of the first row in b: 1 of 1 + 2; item 2 of the last row in a: 1 of 1 + 3; 3 and 4 are shown nowhere else
    assert terms["pseudo"].item() == pytest.approx(np.log([3, 4]).sum() / 4)
    weighted = loss(model, dataclasses.replace(batch, pool=pool, weight=torch.tensor([2.0, 1, 1, 4])))
    assert weighted["loss"].item() == pytest.approx((np.log([4, 4 / 3, 5 / 4, 3]) @ [2, 1, 1, 4]) / 8)
    assert weighted["pseudo"].item() == pytest.approx((2 * np.log(3) + 4 * np.log(4)) / 8)


def test_eq_27_by_hand_over_drawn_candidates() -> None:
    """Eq. 4, 5: every other candidate counts 1 / (how often it is expected); copies of the row's own item do not."""
    model, batch = by_hand()
    log_q = torch.tensor([0.5, 1.5, 1.5, 2.0, 0.25, 0.5]).log()
    pool = Pool(torch.tensor([2, 3, 3, 4, 2, 4]), torch.tensor([0, 0, 0, 1, 1, 1]), (0, 3, 6, 6), torch.tensor([0, 1, 3, 4]), log_q)
    terms = loss(model, dataclasses.replace(batch, pool=pool))
    # a: 1 against 2 * 3 / 1.5; 3 against 1 / 0.5.  b: 4 against 1 / 0.25; 1 against 2 / 2 + 2 / 0.5
    assert terms["loss"].item() == pytest.approx(np.log([5, 5 / 3, 2, 6]).mean())
    assert terms["pseudo"].item() == pytest.approx(np.log([6, 5]).sum() / 4)  # as rows of b and of a, for users 5 and 4
    terms["pseudo"].backward()
    towers = model.towers
    assert isinstance(towers, Given)
    assert towers.users.grad is not None
    assert towers.users.grad.nonzero().tolist() == [[0, 4], [1, 5]], "each as a row of the other domain"


def test_a_domain_with_nothing_to_compare_gets_no_pseudo_rows() -> None:
    """One row of b and its item as the only candidate: the candidate is not expected besides the row (log q = -60)."""
    model, batch = by_hand()
    pool = Pool(torch.tensor([2, 3, 4]), torch.tensor([0, 0, 1]), (0, 2, 3, 3), torch.tensor([0, 1, 2]), torch.tensor([0.0, 0.0, -60.0]))
    batch = dataclasses.replace(batch.take(torch.arange(3), torch.tensor([0, 0, 1])), pool=pool)
    assert loss(model, batch)["pseudo"].item() == 0.0


def test_self_training_needs_shared_candidates() -> None:
    with pytest.raises(ConfigError, match='sampler="auto"'):
        loss(adi(self_training=True), rows())
    assert adi().stages()[0].loss is None


# ---------------------------------------------------------------- self-training: Algorithm 1


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_pseudo_rows_are_those_of_algorithm_1(data: st.DataObject) -> None:
    sizes = data.draw(st.tuples(*[st.integers(0, 9)] * DOMAINS))
    pairs: Pairs = data.draw(st.sets(st.tuples(st.integers(0, DOMAINS - 1), st.integers(2, ITEMS - 1))))
    portion, growth, epoch = data.draw(st.tuples(st.integers(0, 64), st.integers(0, 16), st.integers(0, 5)))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    model = ADI(SCHEMA, self_training=True, portion=portion / 64, growth=growth / 64)
    shown(model, pairs)
    users, items = rng.normal(size=(DOMAINS, USERS)), rng.normal(size=(DOMAINS, ITEMS))
    model.towers = Given(users.tolist(), items.tolist())  # type: ignore[assignment]
    batch = rows(sizes, seed=int(rng.integers(99)), epoch=epoch)
    expected = []
    for j in range(DOMAINS):
        for i in range(DOMAINS):
            mine = [n for n in range(len(batch)) if int(batch.domain[n]) == i != j and (j, int(batch.item[n, 0])) in pairs]
            score_of = {n: users[j, batch.user[n]] * items[j, batch.item[n, 0]] for n in mine}
            most = min(portion + growth * epoch, 64) * sizes[i] // 64
            chosen = sorted(mine, key=lambda n: -score_of[n])[:most]
            expected.append((j, sorted(round(float(score_of[n]), 4) for n in chosen), i))
    found, target = model.pseudo_rows(batch)
    assert target.tolist() == sorted(target.tolist())
    assert len(set(zip(found.tolist(), target.tolist(), strict=True))) == len(found), "a row once per domain"
    for j, scores, i in expected:
        mine = [n for n, to in zip(found.tolist(), target.tolist(), strict=True) if to == j and int(batch.domain[n]) == i]
        assert all((j, int(batch.item[n, 0])) in pairs for n in mine)
        assert sorted(round(float(users[j, batch.user[n]] * items[j, batch.item[n, 0]]), 4) for n in mine) == scores


def test_everything_showable_or_nothing() -> None:
    batch = rows()
    all_of = {(n, j) for n in range(18) for j in range(DOMAINS) if j != int(batch.domain[n]) and (j + int(batch.item[n, 0])) % 4}
    found, target = adi(portion=1.0).pseudo_rows(batch)
    assert set(zip(found.tolist(), target.tolist(), strict=True)) == all_of
    for changes in ({"portion": 0.0}, {"portion": 0.12}):  # 0.12 of 8, 6 and 4 rows is less than one
        model = adi(self_training=True, growth=0.01, **changes)
        assert not len(model.pseudo_rows(batch)[0])
        assert loss(model, whole(model, batch))["pseudo"].item() == 0.0
    grown, _ = adi(portion=0.0, growth=0.25).pseudo_rows(dataclasses.replace(batch, epoch=4))
    assert len(grown) == len(all_of), "p = 0 + 4 * 0.25"


def test_selection_and_pseudo_rows_leave_no_trace() -> None:
    model = adi(self_training=True, portion=1.0, dropout=0.5, id_dropout=0.5, history_dropout=0.5)
    batch = whole(model, rows())
    state, modes = {k: v.clone() for k, v in model.state_dict().items()}, [m.training for m in model.modules()]
    torch.manual_seed(1)
    first, second = model.pseudo_rows(batch), model.pseudo_rows(batch)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True)), "chance has no part in it"
    assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(1)))
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert not any(p.grad_fn is not None for p in first)
    model.eval().pseudo_rows(batch)
    assert not model.training
    torch.manual_seed(2)
    loss(model.train(), batch)
    moved = {k: v.clone() for k, v in model.state_dict().items() if "running" in k}
    model.load_state_dict(state)
    torch.manual_seed(2)
    get_task("retrieval").loss(model, batch)
    assert all(torch.equal(v, moved[k]) for k, v in model.state_dict().items() if "running" in k), "statistics are of real rows alone"
    assert any(not torch.equal(v, state[k]) for k, v in moved.items())


def test_pseudo_rows_and_their_candidates_pass_with_the_same_statistics() -> None:
    """The term is what evaluation would give, row by row over whole catalogues."""
    model = adi(self_training=True, portion=1.0, dropout=0.5, id_dropout=0.5)
    batch = whole(model, rows())
    term = loss(model, batch)["pseudo"].item()
    total = 0.0
    for n, j in zip(*(found.tolist() for found in model.pseudo_rows(batch)), strict=True):
        items = torch.tensor([i for i in range(2, ITEMS) if (j + i) % 4])
        one = batch.take(torch.tensor([n]), torch.tensor([j]))
        logit = model.eval()(dataclasses.replace(one, item=items[None])).logit[0]
        total += (logit.logsumexp(0) - logit[items == batch.item[n, 0]]).item()
    assert term == pytest.approx(total / len(batch), rel=1e-4)


def test_rows_are_chosen_by_the_models_own_score_elsewhere() -> None:
    model = adi(portion=0.5, growth=0.0)
    batch = rows((6, 6, 6))
    found, target = model.pseudo_rows(batch)
    model.eval()
    for i in range(DOMAINS):
        for j in {0, 1, 2} - {i}:
            mine = [n for n in range(6 * i, 6 * i + 6) if (j + int(batch.item[n, 0])) % 4]
            alone = {n: model(batch.take(torch.tensor([n]), torch.tensor([j]))).logit.item() for n in mine}
            best = sorted(mine, key=lambda n: -alone[n])[:3]
            assert sorted(best) == sorted(n for n, to in zip(found.tolist(), target.tolist(), strict=True) if to == j and n // 6 == i)
