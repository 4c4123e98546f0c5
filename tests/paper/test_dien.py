"""DIEN: the recurrences step by step, the whole model against a loop over rows, and what the auxiliary term compares."""

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
from isthmus.layers.evolution import GatedUnit, InterestEvolution, shuffled_within, steps_of, tells_next
from isthmus.models import dien
from isthmus.models.dien import DIEN
from isthmus.schema import PADDING, Entity, Field, Schema

HISTORY = torch.tensor([[0, 2, 4], [3, 4, 5], [0, 0, 0], [0, 0, 5], [4, 2, 3]])
LEVEL = torch.tensor([-1.0, 2.0])


@pytest.fixture
def rows(batch: Batch) -> Batch:
    batch.history = HISTORY
    return batch


def made(schema: Schema, **args: Any) -> DIEN:
    """A model whose weights are far from 0, in evaluation."""
    torch.manual_seed(0)
    model = DIEN(schema, id_dropout=0.0, **args)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.5 * torch.randn_like(weight)
        for table in (model.fields.users.table, model.fields.items.table):
            table.weight[PADDING] = 0.0
        model.levels.level.copy_(LEVEL)
    return model.eval()


def written_out(unit: GatedUnit, inputs: list[Tensor], attention: list[Tensor] | None = None) -> list[Tensor]:
    """The states of one sequence, gate by gate."""
    (wu, wr, wn), (uu, ur, un), (bu, br, bn) = (part.chunk(3) for part in (unit.input.weight, unit.state.weight, unit.input.bias))
    h, states = torch.zeros(unit.size), []
    for t, x in enumerate(inputs):
        u, r = torch.sigmoid(wu @ x + uu @ h + bu), torch.sigmoid(wr @ x + ur @ h + br)
        new = torch.tanh(wn @ x + r * (un @ h) + bn)
        if attention is not None:
            u = attention[t] * u
        h = (1 - u) * h + u * new
        states.append(h)
    return states


def set_(weight: Tensor, values: object) -> None:
    with torch.no_grad():
        weight.copy_(torch.tensor(values))


def test_histories_step_by_step() -> None:
    steps = steps_of(HISTORY)
    assert steps.sizes == (4, 3, 2)
    assert steps.row.tolist() == [1, 4, 0, 3, 1, 4, 0, 1, 4]
    assert steps.item.tolist() == [3, 4, 2, 5, 4, 2, 4, 5, 3]
    assert steps.previous().tolist() == [0, 1, 2, 4, 5]
    assert steps_of(HISTORY[[2]]).sizes == steps_of(HISTORY[:, :0]).sizes == ()
    assert len(steps_of(HISTORY[[2]]).previous()) == len(steps_of(HISTORY[:, 2:]).previous()) == 0


def test_the_update_gate_is_scaled_by_hand() -> None:
    unit = GatedUnit(1, 1)
    set_(unit.input.weight, [[0.0], [0.0], [1.0]])
    set_(unit.state.weight, [[0.0], [0.0], [8.0]])
    set_(unit.input.bias, [math.log(3), -math.log(3), 0.0])  # u = 3/4, r = 1/4
    x = torch.tensor([[math.atanh(0.8)], [math.atanh(0.5) - 0.48]])
    # Attention 2/5, then 2/3.  h_1 = .3 * .8 = .24; n_2 = tanh(x_2 + 8 / 4 * .24) = .5, h_2 = .5 * .24 + .5 * .5 = .37
    first, second = unit(x, (1, 1), torch.tensor([[0.4], [2 / 3]]))
    torch.testing.assert_close(torch.cat([first, second]).flatten(), torch.tensor([0.24, 0.37]))
    # Without attention h_1 = .75 * .8 = .6; x_2 less .72 gives the same n_2, h_2 = .25 * .6 + .75 * .5 = .525
    _, second = unit(x - torch.tensor([[0.0], [0.72]]), (1, 1))
    torch.testing.assert_close(second.flatten(), torch.tensor([0.525]))


def test_attention_by_hand() -> None:
    evolution, steps = InterestEvolution(2), steps_of(torch.tensor([[0, 2], [3, 4], [0, 0]]))
    set_(evolution.asked.weight, [[0.0, 1.0], [2.0, 0.0]])  # W q = (q_2, 2 q_1)
    interest = torch.tensor([[1.0, 0.0], [5.0, 5.0], [0.0, 1.0]])  # row 1's first, row 0's only one, row 1's second
    query = torch.tensor([[[3.0, 4.0]], [[math.log(3) / 2, 0.0]], [[1.0, 1.0]]])
    found = evolution.weights(interest, steps, query)  # row 1: e^0 and e^(log 3)
    torch.testing.assert_close(found, torch.tensor([[0.25], [1.0], [0.75]]))


def test_the_model_against_a_loop(schema: Schema, rows: Batch) -> None:
    rich = Schema(schema.user, Entity("item", (Field("group", "categorical", 4),), 6, 6), schema.domains, label="click")
    model = made(rich, dim=3)
    items = model.fields.items
    items.field_rows[:, 0] = torch.tensor([0, 7, 8, 9, 7, 8])
    logit = torch.zeros(rows.item.shape)
    with torch.no_grad():
        for b, c in itertools.product(range(5), range(2)):
            events = [items(code).flatten() for code in HISTORY[b] if code != PADDING]
            q, interests = items(rows.item[b, c]).flatten(), written_out(model.extraction.unit, events)
            evolved = torch.zeros_like(q)
            if interests:
                attention = torch.stack([h @ model.evolution.asked.weight @ q for h in interests]).softmax(0)
                evolved = written_out(model.evolution.unit, interests, list(attention))[-1]
            x = torch.cat([model.fields.row(rows)[b].flatten(), q, evolved])
            logit[b, c] = LEVEL[rows.domain[b]] + model.mlp(x[None])[0, 0]
        torch.testing.assert_close(model(rows).logit, logit, rtol=1e-4, atol=1e-5)


def test_the_auxiliary_term_by_hand() -> None:
    h, e = torch.tensor([[1.0, 2.0], [1.0, 0.0], [9.0, 9.0]]), torch.tensor([[math.log(3), 0.0], [0.0, 1.0], [9.0, 9.0]])
    other = torch.tensor([[0.0, 0.0], [-math.log(3), 5.0], [1.0, 1.0]])
    # s(h . e) = 3/4 and 1/2, 1 - s(h . e') = 1/2 and 3/4; the third is left out
    found = tells_next(h, e, other, torch.tensor([True, True, False]))
    assert found.item() == pytest.approx(-math.log(3 / 4 * 1 / 2))
    assert tells_next(h, e, other, torch.zeros(3, dtype=torch.bool)).item() == 0
    assert tells_next(h[:0], e[:0], other[:0], torch.ones(0, dtype=torch.bool)).item() == 0


def test_interests_tell_the_next_event_from_one_of_another_history(schema: Schema, rows: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    def shuffled(domain: Tensor) -> Tensor:
        assert domain.tolist() == [0, 1, 0, 0, 1]  # of rows 1, 4, 0 and once more 1, 4
        return torch.tensor([2, 4, 3, 0, 1])

    monkeypatch.setattr(dien, "shuffled_within", shuffled)
    model = made(schema, dim=3, auxiliary=0.5).train()
    items = model.fields.items.table.weight

    def state(row: int, step: int) -> Tensor:
        return written_out(model.extraction.unit, [items[code] for code in HISTORY[row] if code != PADDING])[step]

    # Row, step, the item that came next, another one.  Row 1 after one event: the other one is the item that came, 4.
    pairs = [(4, 0, 2, 3), (0, 0, 4, 5), (1, 1, 5, 4), (4, 1, 3, 2)]
    terms = [-F.logsigmoid(state(b, t) @ items[e]) - F.logsigmoid(-state(b, t) @ items[o]) for b, t, e, o in pairs]
    found = model(rows).extra
    assert found.keys() == {"auxiliary"}
    torch.testing.assert_close(found["auxiliary"], 0.5 * torch.stack(terms).mean())


def test_others_are_events_of_the_same_domain_each_once() -> None:
    torch.manual_seed(0)
    group = torch.tensor([0, 2, 0, 1, 2, 2, 0, 0, 2])
    found = torch.stack([shuffled_within(group) for _ in range(200)])
    assert (found.sort(1).values == torch.arange(9)).all()
    assert (group[found] == group).all()
    assert {place: set(found[:, place].tolist()) for place in (0, 1, 3)} == {0: {0, 2, 6, 7}, 1: {1, 4, 5, 8}, 3: {3}}


def test_the_auxiliary_term_is_for_training_where_asked_for(schema: Schema, rows: Batch) -> None:
    assert made(schema)(rows).extra == {}
    assert made(schema, auxiliary=0.0).train()(rows).extra == {}
    with pytest.raises(ConfigError, match="0 or more"):
        DIEN(schema, auxiliary=-1.0)


@pytest.mark.parametrize("column", [1, 3])
def test_without_a_next_event_it_is_nothing(schema: Schema, rows: Batch, column: int) -> None:
    rows.history = HISTORY[:, :1] if column == 1 else HISTORY[:, 3:]
    output = made(schema).train()(rows)
    assert output.extra["auxiliary"].item() == 0
    (output.logit.sum() + output.extra["auxiliary"]).backward()


def test_padding_changes_neither_scores_nor_the_auxiliary_term(schema: Schema, rows: Batch) -> None:
    found = []
    for history in (HISTORY, F.pad(HISTORY, (4, 0))):
        rows.history, model = history, made(schema)
        logit = model(rows).logit
        torch.manual_seed(1)
        found.append((logit, model.train()(rows).extra["auxiliary"]))
    assert all(torch.equal(narrow, wide) for narrow, wide in zip(*found, strict=True))


def test_a_user_without_events_scores_as_with_no_history_at_all(schema: Schema, rows: Batch) -> None:
    model = made(schema)
    together = model(rows).logit
    rows.history = HISTORY[:, :0]
    torch.testing.assert_close(model(rows).logit[2], together[2])
