"""What MAN shows of its groups (Figure 4): shares worked out by hand, clusters that are known, and what the scores are made of."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from dataclasses import replace
from typing import cast

import pytest
import torch
from torch import Tensor

from isthmus.batch import Batch
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.samples import samples
from isthmus.data.split import global_time
from isthmus.data.synthetic import make_world
from isthmus.insight import Insight
from isthmus.layers import group_looks
from isthmus.layers.encoders._base import Encoder
from isthmus.layers.from_data import fill
from isthmus.layers.mixed_attention import GroupAttention, LocalPart
from isthmus.models.man import MAN
from isthmus.models.man_dot import MANDot
from isthmus.report.looks import look
from isthmus.schema import Schema

GROUPS = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    events = make_world(("films", "books"), users=60, items=40, events=2000).events
    return encode(events, global_time(events), tmp_path_factory.mktemp("looks") / "data")


def built(model: type[MAN] | type[MANDot], data: Dataset, **args: object) -> MAN | MANDot:
    torch.manual_seed(3)
    found = model(data.schema, dim=4, groups=GROUPS, **args)  # type: ignore[arg-type]
    fill(found, data)
    for weight in found.parameters():
        torch.nn.init.normal_(weight, std=0.4)
    return found


def attentions(model: MAN | MANDot) -> list[GroupAttention]:
    """Each domain's view of the groups."""
    return [cast("GroupAttention", cast("LocalPart", part).group) for part in model.local.copies]


def drawn(model: MAN | MANDot, *batches: Batch) -> dict[str, Insight]:
    assert model.groups is not None
    with torch.no_grad():
        names = (model.schema.domain_names[int(batch.domain[0])] for batch in batches)
        looks = group_looks.group_looks(zip(names, batches, strict=True), model.vectors, model.local, model.groups.prototype)
    return {insight.name: insight for insight in looks}


def shares(insight: Insight) -> dict[str, list[float]]:
    found: dict[str, list[float]] = defaultdict(list)
    for number, row in enumerate(insight.rows):
        assert row["group"] == 1 + number % GROUPS
        found[str(row["domain"])].append(float(row["share"]))
    return found


# ---------------------------------------------------------------- shares


class Ones(Encoder):
    """An encoder whose states are all ones."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.ones_like(x)


def test_shares_of_the_groups_by_hand(schema: Schema, batch: Batch) -> None:
    """W_P weighs what is two places back by log 1, 2, 5, the MLP takes a mean: two events give 1/8, 2/8, 5/8, one gives thirds."""
    model = MAN(schema, dim=4, domain_dim=0, groups=GROUPS).eval()
    for part, attention in zip(model.local.copies, attentions(model), strict=True):
        part.encoder = Ones(1)
        with torch.no_grad():
            attention.pool.zero_()[:, 2] = torch.tensor([1.0, 2.0, 5.0]).log()
            attention.relevance[0].weight.copy_(torch.eye(4))  # type: ignore[operator]
            attention.relevance[0].bias.zero_()  # type: ignore[operator]
            attention.relevance[2].weight.fill_(0.25)  # type: ignore[operator]
    two, even = torch.tensor([1 / 8, 2 / 8, 5 / 8]), torch.full((3,), 1 / 3)
    films, books = batch.take(torch.arange(3), batch.domain[:3]), batch.take(torch.arange(3, 5), batch.domain[3:])
    found = drawn(model, films, books)
    assert list(found) == ["groups"], "two users are no picture"
    got = shares(found["groups"])
    assert got["a"] == pytest.approx(((even + two) / 2).tolist()), "the third one has no events"
    assert got["b"] == pytest.approx(((even + two) / 2).tolist())
    assert "0.333 each" in found["groups"].note
    assert shares(drawn(model, replace(films, user=torch.tensor([3, 3, 4])))["groups"])["a"] == pytest.approx(two.tolist())
    assert drawn(model, replace(films, history=torch.zeros(3, 2, dtype=torch.int64))) == {}
    assert drawn(model, replace(films, history=torch.zeros(3, 0, dtype=torch.int64))) == {}


def test_a_user_is_the_row_that_knows_most_and_unknown_users_are_many(batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = replace(batch, user=torch.tensor([2, 2, 3, 2, 2]), domain=torch.zeros(5, dtype=torch.int64), offsets=(0, 5, 5))
    assert group_looks.one_each(rows).history.tolist() == [[3, 4]]  # type: ignore[union-attr]
    rows.user = torch.tensor([1, 1, 1, 1, 3])
    assert group_looks.one_each(rows).history.tolist() == [[0, 2], [3, 4], [0, 5], [2, 3]]  # type: ignore[union-attr]
    monkeypatch.setattr(group_looks, "USERS", 2)
    assert len(group_looks.one_each(rows)) == 2


@pytest.mark.parametrize("model", [MAN, MANDot])
def test_looks_are_at_what_the_scores_are_made_of(data: Dataset, model: type[MAN] | type[MANDot], monkeypatch: pytest.MonkeyPatch) -> None:
    found = built(model, data)
    clustered: dict[str, Tensor] = {}
    monkeypatch.setattr(group_looks, "picture", lambda name, group, groups: clustered.update({name: group}) or [])
    got = shares({insight.name: insight for insight in found.insights(data)}["groups"])
    assert found.training, "the mode before comes back"
    found.eval()
    for attention, (name, batch) in zip(attentions(found), samples(data, found.needs, group_looks.ROWS), strict=True):
        seen: list[tuple[Tensor, Tensor]] = []
        hook = attention.register_forward_hook(lambda *call, seen=seen: seen.append(call[-1]))
        users = group_looks.one_each(batch)
        with torch.no_grad():
            found(users)
        hook.remove()
        ((group, share),) = seen
        assert users.history is not None
        last = torch.arange(len(users)), (users.history != 0).sum(1) * (model is MANDot)  # MAN asks once, its relative after each event
        torch.testing.assert_close(clustered[name], group[last])
        assert got[name] == pytest.approx(share[last].mean(0).tolist(), abs=1e-6)


# ---------------------------------------------------------------- pictures


def test_every_domains_users_get_a_place_and_a_colour_and_it_repeats(data: Dataset) -> None:
    model = built(MAN, data)
    looks = {insight.name: insight for insight in model.insights(data)}
    assert list(looks) == ["groups", "groups-films", "groups-books"]
    for name, batch in samples(data, model.needs, group_looks.ROWS):
        rows = looks[f"groups-{name}"].rows
        assert len(rows) == len(group_looks.one_each(batch)) > 20
        names = list(dict.fromkeys(str(row["cluster"]) for row in rows))
        sizes = [sum(row["cluster"] == cluster for row in rows) for cluster in names]
        assert names == [f"{letter} ({size})" for letter, size in zip("ABC", sizes, strict=True)]
        assert sizes == sorted(sizes, reverse=True)
    torch.rand(5)
    assert model.insights(data) == list(looks.values())
    assert all("<svg" in look(insight) for insight in looks.values())


def test_clusters_that_are_known_are_found_and_stay_together() -> None:
    torch.manual_seed(0)
    centre = torch.tensor([[9.0, 0, 0], [0, 9, 0], [0, 0, 9]]).repeat_interleave(torch.tensor([10, 40, 25]), 0)
    (found,) = group_looks.picture("films", centre + 0.1 * torch.randn(75, 3), GROUPS)
    places = defaultdict(list)
    for row in found.rows:
        places[row["cluster"]].append((float(row["first"]), float(row["second"])))
    assert list(places) == ["A (40)", "B (25)", "C (10)"]
    middle = {name: torch.tensor(of).mean(0) for name, of in places.items()}
    radius = max(math.dist(middle[name], point) for name, of in places.items() for point in of)
    assert all(math.dist(middle[a], middle[b]) > 2 * radius for a, b in itertools.combinations(middle, 2))
    assert found.title == "films: 75 users by their groups"


@pytest.mark.parametrize("dim", [1, 3])
def test_few_users_and_users_who_are_alike(dim: int) -> None:
    torch.manual_seed(0)
    for few in (4, 5, 7):
        (found,) = group_looks.picture("films", torch.randn(few, dim), 20)
        assert len({row["cluster"] for row in found.rows}) == few
    (found,) = group_looks.picture("films", torch.randn(5, dim).repeat(30, 1), 10)
    assert len({row["cluster"] for row in found.rows}) == 5, "no more clusters than different users"
    (found,) = group_looks.picture("films", torch.randn(50, dim), 20)
    assert len({row["cluster"] for row in found.rows}) == 10, "no more clusters than colours"
    (found,) = group_looks.picture("films", 1e-6 * torch.randn(50, dim), 1)
    assert {row["cluster"] for row in found.rows} == {"A (50)"}
    assert group_looks.picture("films", torch.randn(3, dim).repeat(30, 1), 10) == []
    assert group_looks.picture("films", torch.ones(50, dim) * (1 + 1e-7 * torch.randn(50, 1)), 10) == []
    assert group_looks.picture("films", torch.zeros(50, dim), 10) == []


# ---------------------------------------------------------------- what is not there


@pytest.mark.parametrize("model", [MAN, MANDot])
def test_without_groups_there_is_nothing_to_see(data: Dataset, model: type[MAN] | type[MANDot]) -> None:
    assert built(model, data, group_prototypes=False).insights(data) == []


def test_without_scikit_learn_the_table_says_what_is_missing(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    model = built(MANDot, data)
    assert "scikit-learn" not in model.insights(data)[0].note
    monkeypatch.setattr(group_looks.importlib.util, "find_spec", lambda name: None)  # type: ignore[attr-defined]
    (table,) = model.insights(data)
    assert table.name == "groups"
    assert table.note.endswith("pip install scikit-learn.")
