"""DACDR's equations: the whole forward computed again in plain numpy, and what each setting means."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor

from isthmus.batch import Batch
from isthmus.data import split
from isthmus.data.encode import encode
from isthmus.data.events import read_events
from isthmus.errors import ConfigError
from isthmus.layers.attention import NORM_EPS
from isthmus.layers.behaviours import events_of
from isthmus.layers.biases import Biases
from isthmus.layers.dacdr import mass_by_kind
from isthmus.layers.from_data import fill
from isthmus.layers.start import Start
from isthmus.layers.user_clicks import TOTAL
from isthmus.models.dacdr import DACDR
from isthmus.schema import Domain, Entity, Field, Schema
from isthmus.task import get_task

ITEMS = 8
DOMAINS = (Domain("books"), Domain("films"), Domain("music"))


def make_schema(label: str = "rating", types: tuple[str, ...] = (), fields: bool = False) -> Schema:
    side = (Field("genre", size=5), Field("maker", size=4)) if fields else ()
    return Schema(Entity("user", (), 6, 6), Entity("item", side, ITEMS, ITEMS), DOMAINS, label=label, behaviours=types)  # type: ignore[arg-type]


def make_batch(label: str = "rating", types: tuple[str, ...] = ()) -> Batch:
    """A row of books, two of films, one of music; the third has no events at all, the second none elsewhere."""
    own, cross = [[0, 2], [3, 4], [0, 0], [0, 5]], [[0, 4, 3], [0, 0, 0], [0, 0, 0], [6, 2, 7]]
    cross_domain = [[-1, 1, 2], [-1, -1, -1], [-1, -1, -1], [0, 1, 0]]
    batch = Batch(
        user=torch.tensor([2, 3, 4, 5]),
        item=torch.tensor([[2, 3], [4, 5], [6, 2], [5, 7]]),
        domain=torch.tensor([0, 1, 1, 2]),
        offsets=(0, 1, 3, 4),
        history=torch.tensor(own),
        cross_history=torch.tensor(cross),
        cross_domain=torch.tensor(cross_domain),
    )
    if label == "rating":
        batch.history_label = torch.tensor([[0.0, 4.0], [2.0, 5.0], [0.0, 0.0], [0.0, 3.0]])
        batch.cross_label = torch.tensor([[0.0, 1.0, 5.0], [0.0] * 3, [0.0] * 3, [4.0, 4.0, 2.0]])
    if types:
        batch.history_behaviour = torch.tensor([[0, 1], [2, 2], [0, 0], [0, 1]])
        batch.cross_behaviour = torch.tensor([[0, 2, 1], [0] * 3, [0] * 3, [1, 1, 2]])
    return batch


def fill_biases(biases: Biases) -> None:
    """Items 2..7 of three domains: sums and numbers of labels as if counted."""
    pairs = [(d, i) for d in range(3) for i in range(2, ITEMS)]
    count = torch.tensor([float(1 + (3 * d + i) % 4) for d, i in pairs])
    mean = torch.tensor([0.3 + 0.04 * i if biases.kind == "click" else 2.0 + 0.3 * i for _, i in pairs])
    level = torch.tensor([0.3, 0.4, 0.5]) if biases.kind == "click" else torch.tensor([3.5, 3.0, 4.0])
    biases.fill(
        mean=level,
        level=torch.logit(level) if biases.kind == "click" else level,
        keys=torch.tensor([d * ITEMS + i for d, i in pairs]),
        total=torch.cat([count * mean, torch.zeros(1)]),
        count=torch.cat([count, torch.zeros(1)]),
    )


def make_model(schema: Schema, *, shake: float = 0.5, **settings: Any) -> DACDR:
    torch.manual_seed(3)
    model = DACDR(schema, **{"dim": 4, "tokens": 2, "hidden": (6,), **settings}).eval()
    if schema.label != "implicit":
        fill_biases(model.biases)
    with torch.no_grad():
        for weight in model.parameters():
            weight += shake * torch.randn_like(weight)
        for table in (*([model.users.table] if model.users else []), model.items.table, model.domain, *(k.domain for k in model.kinds)):  # type: ignore[attr-defined]
            table.weight[0] = 0.0  # type: ignore[index, union-attr]
        if schema.item.fields:
            rows = torch.tensor([[0, 0], *([1 + i % 4, 1 + i % 3] for i in range(1, ITEMS))])
            starts = torch.tensor(model.items.starts)
            model.items.field_rows.copy_(torch.where(rows > 0, rows + starts, 0))
    return model


# ---------------------------------------------------------------- an independent forward


class Plain:
    """The forward of one row and one candidate, from the weights alone, with loops."""

    def __init__(self, model: DACDR, batch: Batch) -> None:
        self.model, self.batch = model, batch
        self.w = {name: value.numpy().astype(float) for name, value in model.state_dict().items()}

    def softmax(self, x: np.ndarray) -> np.ndarray:
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    def attend(self, name: str, query: np.ndarray, key: np.ndarray) -> np.ndarray:
        """Eq. 1 and 2, one head; no keys: zeros."""
        if not len(key):
            return np.zeros(query.shape)
        asked, answers = (self.norm(query), self.norm(key)) if self.model.args.get("norm", True) else (query, key)
        q, k, v = (x @ self.w[f"{name}.{kind}.weight"][0].T for kind, x in (("query", asked), ("key", answers), ("value", key)))
        return self.softmax(q @ k.T / math.sqrt(q.shape[1])) @ v

    def norm(self, x: np.ndarray) -> np.ndarray:
        return (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + NORM_EPS)

    def mlp(self, name: str, x: np.ndarray) -> np.ndarray:
        *hidden, last = (k.removesuffix(".weight") for k in self.w if k.startswith(f"{name}.layers.") and k.endswith(".weight"))
        for layer in hidden:
            x = np.maximum(self.w[f"{layer}.weight"] @ x + self.w[f"{layer}.bias"], 0)
        return self.w[f"{last}.weight"] @ x + self.w[f"{last}.bias"]

    def item(self, item: int) -> np.ndarray:
        """(fields, dim)."""
        rows = [item, *self.model.items.field_rows[item].tolist()]
        return self.w["items.table.weight"][rows]

    def bias(self, item: int, domain: int) -> float:
        b = self.model.biases
        at = b.keys.tolist().index(domain * ITEMS + item)
        total, count, mean = float(b.total[at]), float(b.count[at]), float(b.mean[domain])
        return (total - count * mean) / (count + 5)

    def events(self, row: int) -> list[tuple[int, int, int, float, bool]]:
        """Item, domain, behaviour type, residual, own."""
        b, out = self.batch, []
        for own in (False, True):
            items = b.history if own else b.cross_history
            assert items is not None
            labels, types = (b.history_label, b.history_behaviour) if own else (b.cross_label, b.cross_behaviour)
            for slot, item in enumerate(items[row].tolist()):
                if item:
                    domain = int(b.domain[row]) if own else int(b.cross_domain[row, slot])  # type: ignore[index]
                    residual = 0.0
                    if labels is not None:
                        residual = float(labels[row, slot]) - float(self.model.biases.level[domain]) - self.bias(item, domain)
                    out.append((item, domain, 1 if types is None else int(types[row, slot]), residual, own))
        return out

    def behaviours(self, row: int, side: int, kind: int) -> np.ndarray:
        """The vectors of one row's events of one behaviour type."""
        out, name = [np.zeros((0, 4))], f"kinds.{side}"
        for item, domain, behaviour, residual, _ in self.events(row):
            if behaviour == kind:
                x = self.item(item)[1:].mean(0) if side else self.item(item)[0]
                x = x + self.w[f"{name}.domain.weight"][domain + 1] + residual * self.w.get(f"{name}.residual", 0.0)
                out.append((x + self.w[f"{name}.behaviour.weight"][behaviour] if f"{name}.behaviour.weight" in self.w else x)[None])
        return np.concatenate(out)

    def transferred(self, row: int, column: int, side: int, kind: int) -> np.ndarray:
        """e_seq or e_side of one behaviour type, eq. 3 and 4."""
        model, name = self.model, f"stacks.{side}"
        stack = model.stacks[side]
        x, domain = self.behaviours(row, side, kind), self.domain(row)
        item = self.item(int(self.batch.item[row, column]))
        if stack.target:
            e = x if stack.domain is None else self.attend(f"{name}.domain", domain, x)
            if stack.item is not None:
                return self.attend(f"{name}.item", item, e).ravel()
            return e.ravel() if stack.domain is not None else self.mean(e)
        e = x if stack.domain is None else self.attend(f"{name}.domain", x, domain)
        return self.mean(e if stack.item is None else self.attend(f"{name}.item", e, item))

    def mean(self, x: np.ndarray) -> np.ndarray:
        return x.mean(0) if len(x) else np.zeros(4)

    def domain(self, row: int) -> np.ndarray:
        return self.w["domain.weight"][int(self.batch.domain[row]) + 1].reshape(-1, 4)

    def start(self, row: int, column: int) -> tuple[float, list[float]]:
        """The biases and the numbers, for ratings."""
        d, w = int(self.batch.domain[row]), self.w
        bias = self.bias(int(self.batch.item[row, column]), d)
        count = float(self.model.biases.item(self.batch.item[row, column], self.batch.domain[row])[1])
        own, cross = ([e[3] for e in self.events(row) if e[4] == kind] for kind in (True, False))
        carried = w["start.carried"][d] * sum(cross) / (len(cross) + math.exp(w["start.log_kappa"][d]))
        here = w["start.own"][d] * (sum(own) - len(own) * carried) / (len(own) + math.exp(w["start.log_own_kappa"][d]))
        numbers = [bias, math.log(1 + count) / 4, carried, here, math.log(1 + len(cross)) / 4, math.log(1 + len(own)) / 4]
        done = self.events(row)
        known = [float(self.model.biases.item(torch.tensor(e[0]), torch.tensor(e[1]))[1]) for e in done]
        numbers += [sum(e[3] ** 2 for e in done) / (len(done) + 2), sum(math.log(1 + k) / 4 for k in known) / (len(done) + 2)]
        bias = numbers[0] = bias * (count + 5) / (count + math.exp(w["start.log_shrink"][d]))
        return float(self.model.biases.level[d]) + w["start.item"][d] * bias + carried + here, numbers

    def logit(self, row: int, column: int) -> float:
        """Eq. 6 and 7."""
        model = self.model
        found = [self.transferred(row, column, side, kind) for side in range(len(model.stacks)) for kind in range(1, model.sequences + 1)]
        domain, item = self.domain(row).ravel(), self.item(int(self.batch.item[row, column]))
        user = self.w["users.table.weight"][int(self.batch.user[row])] if model.users is not None else np.zeros(4)
        encoded = self.mlp("encoder", np.concatenate([*found, domain]))
        products = [np.tile(item[0], len(x) // 4) * x for x in found] if model.products else []
        known = [*found, domain, encoded, item.ravel(), encoded * item[0], *products, user, user * item[0]]
        if not model.user_id:
            known = known[:-2]
        first, numbers = (float(model.biases.level[self.batch.domain[row]]), []) if model.start is None else self.start(row, column)
        bend = 0.0 if model.start is None else float(self.mlp("bend", np.array(numbers))[0])
        known += [np.array(numbers)] if model.numbers else []
        return first + bend + float(self.mlp("head", np.concatenate(known))[0])

    def logits(self) -> np.ndarray:
        return np.array([[self.logit(r, c) for c in range(self.batch.item.shape[1])] for r in range(len(self.batch))])


@pytest.mark.parametrize("queries", ["target", "sequence"])
@pytest.mark.parametrize(("domain_attention", "item_attention"), [(True, True), (False, True), (True, False), (False, False)])
@pytest.mark.parametrize("types", [(), ("view", "buy")])
@pytest.mark.parametrize("printed", [True, False])
def test_equations_3_to_7_against_plain_numpy(
    queries: str, domain_attention: bool, item_attention: bool, types: tuple[str, ...], printed: bool
) -> None:
    batch = make_batch(types=types)
    settings = {"queries": queries, "domain_attention": domain_attention, "item_attention": item_attention}
    model = make_model(
        make_schema(types=types, fields=True), norm=not printed, user_id=printed, products=not printed, numbers=printed, **settings
    )
    assert len(model.stacks) == 2
    with torch.no_grad():
        found = model(batch).logit.numpy()
    np.testing.assert_allclose(found, Plain(model, batch).logits(), rtol=1e-4, atol=1e-5)


def test_without_fields_there_is_no_side_and_level_starts_from_the_level() -> None:
    batch, model = make_batch(), make_model(make_schema(), start="level")
    assert len(model.stacks) == 1
    with torch.no_grad():
        np.testing.assert_allclose(model(batch).logit.numpy(), Plain(model, batch).logits(), rtol=1e-4, atol=1e-5)


def test_equation_8_is_binary_cross_entropy() -> None:
    batch, model = make_batch("click"), make_model(make_schema("click"))
    batch.label = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    with torch.no_grad():
        p = model(batch).logit.sigmoid()
        expected = -(batch.label * p.log() + (1 - batch.label) * (1 - p).log()).mean()
        torch.testing.assert_close(get_task("ctr").loss(model, batch)["loss"], expected)


# ---------------------------------------------------------------- what the history does


def with_other_past(batch: Batch) -> Batch:
    assert batch.cross_history is not None
    return dataclasses.replace(batch, cross_history=torch.where(batch.cross_history == 4, 5, batch.cross_history))


@torch.no_grad()
def moved(model: DACDR) -> Tensor:
    """(B,) how much the scores change with one event elsewhere, which only the first row has."""
    batch = make_batch("click")
    return (model(batch).logit - model(with_other_past(batch)).logit).abs().amax(1)


def test_the_history_changes_the_score() -> None:
    change = moved(make_model(make_schema("click")))
    assert change[0] > 1e-3
    assert (change[1:] == 0).all()


def test_as_printed_a_side_of_one_token_takes_the_histories_say_away() -> None:
    printed = {"queries": "sequence", "own_history": False}
    one_key = make_model(make_schema("click", fields=True), tokens=1, **printed), make_model(make_schema("click"), tokens=2, **printed)
    assert all(moved(model).max() < 1e-6 for model in one_key)
    assert moved(make_model(make_schema("click", fields=True), tokens=2, **printed))[0] > 1e-4
    assert moved(make_model(make_schema("click"), tokens=1, own_history=False))[0] > 1e-4, "asked by the target it keeps its say"


def test_an_empty_history_gives_zeros_and_finite_gradients() -> None:
    batch = make_batch()
    assert batch.history is not None
    assert batch.cross_history is not None
    assert batch.cross_domain is not None
    empty = dataclasses.replace(
        batch,
        history=torch.zeros_like(batch.history),
        cross_history=torch.zeros_like(batch.cross_history),
        cross_domain=torch.full_like(batch.cross_domain, -1),
    )
    for queries in ("target", "sequence"):
        model = make_model(make_schema(fields=True), queries=queries).train()
        events = model._events(empty)
        found = [
            s(x, events.sequences(1), model._domain_tokens(empty), model.items(empty.item), empty.offsets)
            for s, x in zip(model.stacks, model._behaviours(events), strict=True)
        ]
        assert all((f == 0).all() for f in found)
        model(empty).logit.sum().backward()
        assert all(p.grad.to_dense().isfinite().all() for p in model.parameters() if p.grad is not None)


def test_attention_of_a_batch() -> None:
    batch = make_batch(types=("view", "buy"))
    model = make_model(make_schema(types=("view", "buy")))
    with torch.no_grad():
        events, weights = model.attention(batch)
    assert weights.shape == (4, 2, 2, 4)
    # types of the events: row 0: buy, view | view; row 1: buy, buy; row 2: none; row 3: view, view, buy | view
    sums = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0], [1.0, 1.0]])
    torch.testing.assert_close(weights.sum(3), sums[..., None].expand(-1, -1, 2))
    expected = torch.tensor([[[0, 1, 1, 0], [1, 0, 0, 0]], [[0] * 4, [1, 1, 0, 0]], [[0] * 4] * 2, [[1, 1, 0, 1], [0, 0, 1, 0]]])
    assert torch.equal(weights > 0, (expected > 0)[:, :, None].expand_as(weights))
    assert events.item.tolist() == [4, 3, 2, 3, 4, 6, 2, 7, 5]
    assert events.domain.tolist() == [1, 2, 0, 1, 1, 0, 1, 0, 2]
    x = Plain(model, batch).behaviours(0, 0, 1)
    plain = Plain(model, batch)
    q, k = (plain.norm(side) @ plain.w[f"stacks.0.domain.{kind}.weight"][0].T for kind, side in (("query", plain.domain(0)), ("key", x)))
    np.testing.assert_allclose(weights[0, 0, :, 1:3].numpy(), plain.softmax(q @ k.T / 2), rtol=1e-4)


def test_attention_mass_by_source_and_type_by_hand() -> None:
    batch = make_batch(types=("view", "buy"))
    events = events_of(batch, Biases(make_schema(types=("view", "buy"))), True)
    weights = torch.zeros(4, 2, 1, 4)
    weights[0, 1, 0, 0], weights[0, 0, 0, 1], weights[0, 0, 0, 2] = 1.0, 0.2, 0.8
    weights[1, 1, 0, :2] = torch.tensor([0.3, 0.7])
    weights[3, 0, 0], weights[3, 1, 0, 2] = torch.tensor([0.5, 0.1, 0.0, 0.4]), 1.0
    got, even = mass_by_kind(events, weights, 3, 2)
    # three rows count 1/3 each; a row's types share it: row 0 films buy 1/2, music view .1, books view .4; row 1 films buy 1;
    # row 3 books view .25, films view .05, music view .2, books buy .5
    torch.testing.assert_close(got * 3, torch.tensor([[0.65, 0.5], [0.05, 1.5], [0.3, 0.0]]))
    third = 1 / 6
    torch.testing.assert_close(even * 3, torch.tensor([[0.25 + third, 0.5], [third, 1.5], [0.25 + third, 0.0]]))


# ---------------------------------------------------------------- the start


def test_at_the_start_the_prediction_is_the_biases() -> None:
    batch, model = make_batch(), make_model(make_schema(), shake=0.0)
    plain = Plain(model, batch)
    with torch.no_grad():
        found = model(batch).logit
    # row 0, item 2, books: level 3.5; bias -0.9 * 3 / 8 with 3 events of mean 2.6
    assert plain.bias(2, 0) == pytest.approx(3 * (2.6 - 3.5) / 8)
    carried = [0.7 * sum(e[3] for e in plain.events(r) if not e[4]) / (n + 5) for r, n in enumerate([2, 0, 0, 3])]
    for row, (carry, m) in enumerate(zip(carried, [1, 2, 0, 1], strict=True)):
        own = sum(e[3] for e in plain.events(row) if e[4])
        for column in (0, 1):
            d = int(batch.domain[row])
            start = [3.5, 3.0, 4.0][d] + plain.bias(int(batch.item[row, column]), d)
            assert float(found[row, column]) == pytest.approx(start + (own + 5 * carry) / (m + 5), abs=1e-5)


def test_clicks_start_from_level_and_item_bias() -> None:
    batch, model = make_batch("click"), make_model(make_schema("click"), shake=0.0)
    with torch.no_grad():
        found = model(batch).logit
    # item 2 in books: 3 events with rate .38, level .3: (3 * .38 + 5 * .3) / 8
    p = (3 * 0.38 + 5 * 0.3) / 8
    assert float(found[0, 0]) == pytest.approx(math.log(p / (1 - p)), abs=1e-5)


@pytest.mark.parametrize("label", ["rating", "click"])
def test_in_training_a_rows_own_label_has_no_say_in_its_start(label: str) -> None:
    """The row is counted among its item's events: with another label, sums change with it, and the start must not."""
    schema, batch = make_schema(label), make_batch(label)
    model, found = make_model(schema, shake=0.0).train(), []
    model.own_dropout = 0.0
    assert model.start is not None
    keys = model.biases.keys.tolist()
    for answer in (0.0, 1.0):
        fill_biases(model.biases)
        batch.label = torch.full((4, 2), answer)
        for item, domain in zip(batch.item[:, 0].tolist(), batch.domain.tolist(), strict=True):
            model.biases.total[keys.index(domain * ITEMS + item)] += answer
        events = model._events(batch)
        events.residual = None if events.residual is None else torch.zeros_like(events.residual)  # they read the same sums
        found.append(model.start(batch, events, model.biases))
    for before, after in zip(*found, strict=True):
        torch.testing.assert_close(before[:, 0], after[:, 0])
    batch.label = None
    start = model.start(batch, events, model.biases)[0]
    assert (start[:, 0] - found[1][0][:, 0]).abs().min() > 1e-4, "without labels nothing is left out"


def test_negatives_are_no_events_and_nothing_is_left_out_for_them() -> None:
    model, batch = make_model(make_schema("click"), shake=0.0).train(), make_batch("click")
    assert model.start is not None
    batch.label = torch.tensor([[1.0, 0.0]]).expand(4, -1)
    events = model._events(batch)
    with_labels = model.start(batch, events, model.biases)[0]
    without = model.start(dataclasses.replace(batch, label=None), events, model.biases)[0]
    assert torch.equal(with_labels[:, 1], without[:, 1])
    assert (with_labels[:, 0] != without[:, 0]).all()


def test_scoring_reads_no_labels() -> None:
    model, batch = make_model(make_schema()), make_batch()
    with torch.no_grad():
        assert torch.equal(model(batch).logit, model(dataclasses.replace(batch, label=torch.ones(4, 2))).logit)


def test_implicit_data_have_no_biases() -> None:
    start = Start(make_schema("implicit"), True)
    assert not list(start.parameters())
    model, batch = make_model(make_schema("implicit"), shake=0.0), make_batch("implicit")
    assert model(batch).logit.abs().max() == 0


# ---------------------------------------------------------------- settings


def test_own_dropout_hides_the_own_domains_events_of_that_share_of_rows_in_training_alone() -> None:
    model, batch = make_model(make_schema(), own_dropout=0.7), make_batch()
    rows = torch.zeros(2000, dtype=torch.int64)
    many = batch.take(rows, torch.zeros_like(rows))
    torch.manual_seed(0)
    events = model.train()._events(many)
    assert int((~events.own).sum()) == 2 * 2000, "events elsewhere stay"
    assert 0.26 < int(events.own.sum()) / 2000 < 0.34
    assert int(model.eval()._events(many).own.sum()) == 2000


def test_without_own_history_it_is_neither_asked_for_nor_read() -> None:
    model, batch = make_model(make_schema(), own_history=False), make_batch()
    assert not model.needs.history
    assert model.needs.cross_history
    with torch.no_grad():
        assert torch.equal(model(batch).logit, model(dataclasses.replace(batch, history=None, history_label=None)).logit)


def test_domains_may_have_attention_of_their_own() -> None:
    schema, batch = make_schema(), make_batch()
    shared, own = make_model(schema, shake=0.0), make_model(schema, shake=0.0, own_attention=["music", "books"])
    assert {name for name, p in own.named_parameters() if p.shape != shared.get_parameter(name).shape} == {
        f"stacks.0.{step}.{kind}.weight" for step in ("domain", "item") for kind in ("query", "key", "value")
    }
    stack = own.stacks[0]
    assert stack.domain.query.copy_of.tolist() == [2, 0, 1]
    with torch.no_grad():
        for weight in own.parameters():
            weight += 0.3 * torch.randn_like(weight)
        before = own(batch).logit
        stack.item.value.weight[1] += 1.0
        after = own(batch).logit
    changed = (before != after).any(1)
    assert changed.tolist() == [False, False, False, True]


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"queries": "targets"}, "did you mean 'target'"),
        ({"start": "biases"}, "did you mean 'bias'"),
        ({"own_attention": ("musik",)}, "did you mean 'music'"),
        ({"tokens": 0}, "1 or more"),
        ({"heads": 3}, "heads that divide dim"),
        ({"own_dropout": 1.0}, "own_dropout"),
    ],
)
def test_wrong_settings_are_named(settings: dict[str, Any], hint: str) -> None:
    with pytest.raises(ConfigError, match=hint):
        make_model(make_schema(), **settings)


def test_attention_can_be_shown_only_where_the_domain_asks_behaviours() -> None:
    for settings in ({"queries": "sequence"}, {"domain_attention": False}):
        with pytest.raises(ConfigError, match="attention over behaviours"):
            make_model(make_schema(), **settings).attention(make_batch())


def test_insights_show_attention_by_source(tmp_path: Path) -> None:
    rng, n = np.random.default_rng(0), 300
    frame = pl.DataFrame(
        {
            "user": [f"u{i}" for i in rng.integers(0, 20, n)],
            "item": [f"i{i}" for i in rng.integers(0, 15, n)],
            "domain": rng.choice(["books", "films", "music"], n),
            "time": np.arange(n),
            "label": rng.integers(1, 6, n),
            "behaviour": rng.choice(["buy", "view"], n),
        }
    )
    names = {name: name for name in frame.columns}
    events = read_events(frame, **names, label_kind="rating")
    dataset = encode(events, split.global_time(events), tmp_path / "data")
    model = DACDR(dataset.schema)
    fill(model, dataset)
    torch.nn.init.zeros_(model.stacks[0].domain.query.weight)  # even attention
    looks = {look.name: look for look in model.insights(dataset)}
    assert set(looks) == {"attention", "attention_lift", "attention_behaviour"}
    for name, look in looks.items():
        for target in dataset.schema.domain_names:
            cells = [row for row in look.rows if row["target"] == target]
            if name != "attention_lift":
                assert sum(float(row["attention"]) for row in cells) == pytest.approx(1)
            else:
                assert all(row["lift"] == pytest.approx(1, abs=1e-5) for row in cells)
    assert len(looks["attention"].rows) == 9
    assert len(looks["attention_behaviour"].rows) == 18
    assert DACDR(dataset.schema, domain_attention=False).insights(dataset) == []


def test_clicks_start_from_what_the_user_clicked_here_and_elsewhere_without_the_row_itself() -> None:
    model, batch = make_model(make_schema("click"), shake=0.0), make_batch("click")
    assert model.start is not None
    assert model.start.clicks is not None
    size, clicks = model.start.clicks.size, model.start.clicks
    d, user, item = int(batch.domain[0]), int(batch.user[0]), batch.item[:1, :1]
    rate = torch.sigmoid(model.biases.level[d] + model.biases.item(item, batch.domain[:1, None])[0]).item()
    clicks.solve(
        torch.tensor([d * size + user, TOTAL * size + user]),
        torch.tensor([[0.5 + 1 - rate, 0.7 + rate * (1 - rate)], [0.5 + 1 - rate + 0.25, 0.7 + rate * (1 - rate) + 0.3]]),
        torch.zeros(2),
    )
    batch.label = torch.ones(4, 2)
    model.train()
    model.own_dropout = 0.0
    _, numbers = model.start(batch, model._events(batch), model.biases)
    carried = 0.7 * 0.25 / (0.3 + 5)
    here = (0.5 - 0.7 * carried) / (0.7 + 5)
    assert numbers[0, 0, 2:4].tolist() == pytest.approx([carried, here], abs=1e-5)
