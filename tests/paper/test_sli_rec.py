"""SLi-Rec: the time gates against scalars, one unit after the other; times by hand; the whole model one candidate after the other."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from torch import Tensor

from isthmus.batch import Batch
from isthmus.layers.time_lstm import LOG_YEAR, TimeLSTM
from isthmus.models.sli_rec import SLiRec
from isthmus.schema import PADDING, Domain, Entity, Schema

LEVEL = torch.tensor([-1.0, 2.0])
ROWS = torch.tensor([0, 1, 1, 1, 3, 3, 3, 3, 4, 4])  # of 6: rows 2 and 5 have no event


def sig(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def scaled(seconds: float) -> float:
    return math.log1p(seconds) / LOG_YEAR


def one_step(
    lstm: TimeLSTM, x: list[float], h: list[float], c: list[float], interval: float, span: float
) -> tuple[list[float], list[float]]:
    """The next h and c of one row, in Python floats."""
    n = lstm.hidden
    weights = {name: weight.tolist() for name, weight in lstm.named_parameters()}

    def of(name: str, values: list[float], unit: int) -> float:
        return sum(w * v for w, v in zip(weights[f"{name}.weight"][unit], values, strict=True))

    def time(name: str, gap: float) -> list[float]:
        return [math.tanh(weights[f"{name}.weight"][u][0] * gap + weights[f"{name}.bias"][u]) for u in range(n)]

    d, s, new_h, new_c = time("interval", interval), time("span", span), [], []
    for u in range(n):
        f, i, o, new, t_d, t_s = (of("event", x, gate * n + u) + weights["event.bias"][gate * n + u] for gate in range(6))
        f, i, o, new = (value + of("state", h, gate * n + u) for gate, value in enumerate((f, i, o, new)))
        o += of("from_interval", d, u) + of("from_span", s, u)
        t_d, t_s = t_d + of("from_interval", d, n + u), t_s + of("from_span", s, n + u)
        new_c.append(sig(f) * sig(t_d) * c[u] + sig(i) * sig(t_s) * math.tanh(new))
        new_h.append(sig(o) * math.tanh(new_c[-1]))
    return new_h, new_c


def made_lstm() -> tuple[TimeLSTM, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    lstm = TimeLSTM(3, 2)
    with torch.no_grad():
        for weight in lstm.parameters():
            weight.normal_()
    return lstm, torch.randn(len(ROWS), 3), torch.rand(len(ROWS)), torch.rand(len(ROWS))


def test_the_gates_are_those_written_out() -> None:
    lstm, x, interval, span = made_lstm()
    expected, state = [], {row: ([0.0] * 2, [0.0] * 2) for row in ROWS.tolist()}
    for e, row in enumerate(ROWS.tolist()):
        state[row] = one_step(lstm, x[e].tolist(), *state[row], interval[e].item(), span[e].item())
        expected.append(state[row][0])
    torch.testing.assert_close(lstm(x, ROWS, 6, interval, span), torch.tensor(expected))


def test_one_unit_by_hand() -> None:
    lstm = TimeLSTM(1, 1)
    with torch.no_grad():
        for weight in lstm.parameters():
            weight.zero_()
        lstm.event.weight[:, 0] = torch.tensor([0.0, 0, 0, 1, 0, 0])
        lstm.interval.weight.fill_(1.0)
        lstm.from_interval.weight[1] = -2.0  # the longer since the event before, the less is kept of what was
        assert lstm.span is not None
        assert lstm.from_span is not None
        lstm.span.weight.fill_(1.0)
        lstm.from_span.weight[1] = -3.0  # the longer ago, the less comes in
    found = lstm(torch.ones(2, 1), torch.tensor([0, 0]), 1, torch.tensor([0.0, 0.7]), torch.tensor([0.9, 0.2]))
    first = 0.5 * sig(-3 * math.tanh(0.9)) * math.tanh(1)
    second = 0.5 * sig(-2 * math.tanh(0.7)) * first + 0.5 * sig(-3 * math.tanh(0.2)) * math.tanh(1)
    torch.testing.assert_close(found[:, 0], torch.tensor([0.5 * math.tanh(first), 0.5 * math.tanh(second)]))


def test_without_now_everything_comes_in() -> None:
    lstm, x, interval, span = made_lstm()
    blind = TimeLSTM(3, 2, span=False)
    with torch.no_grad():
        for weight in (lstm.from_span, lstm.span):
            assert weight is not None
            weight.weight.zero_()
        lstm.event.bias[10:] = 40.0  # T_s = 1
        lstm.event.weight[10:] = 0.0
        left = {key: value[:10] if key.startswith("event") else value for key, value in lstm.state_dict().items() if "span" not in key}
        blind.load_state_dict(left)
    torch.testing.assert_close(blind(x, ROWS, 6, interval), lstm(x, ROWS, 6, interval, span))


def test_no_events_have_no_states() -> None:
    lstm = TimeLSTM(3, 2)
    none = torch.zeros(0)
    assert lstm(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64), 4, none, none).shape == (0, 2)


def timed(schema: Schema, unit: str = "s") -> Schema:
    return dataclasses.replace(schema, timed=True, time_unit=unit)


def places(batch: Batch) -> tuple[Tensor, Tensor]:
    assert batch.history is not None
    row, column = (batch.history != PADDING).nonzero(as_tuple=True)
    return row, column


@pytest.fixture
def rows(batch: Batch) -> Batch:
    times = torch.tensor([[0, 40], [10, 70], [0, 0], [0, 100], [90, 90]])
    return dataclasses.replace(batch, history_time=times, time=torch.tensor([50, 130, 7, 100, 95]))


@pytest.mark.parametrize(("unit", "per_second"), [("s", 1), ("ms", 1000), ("step", 1)])
def test_times_by_hand(schema: Schema, rows: Batch, unit: str, per_second: int) -> None:
    assert rows.history_time is not None
    assert rows.time is not None
    found = dataclasses.replace(rows, history_time=rows.history_time * per_second, time=rows.time * per_second)
    interval, span, idle = SLiRec(timed(schema, unit)).gaps(found, *places(rows))
    torch.testing.assert_close(interval, torch.tensor([0, 0, scaled(60), 0, 0, 0]))
    torch.testing.assert_close(span, torch.tensor([scaled(t) for t in (10, 120, 60, 0, 5, 5)]))
    torch.testing.assert_close(idle, torch.tensor([scaled(t) for t in (10, 60, 0, 0, 5)]))


def test_without_a_moment_now_is_the_last_event_and_without_times_nothing_is_long_ago(schema: Schema, rows: Batch) -> None:
    model = made(schema)
    _, span, idle = model.gaps(dataclasses.replace(rows, time=None), *places(rows))
    torch.testing.assert_close(span, torch.tensor([0, scaled(60), 0, 0, 0, 0]))
    assert not idle.any()
    untimed = dataclasses.replace(rows, time=None, history_time=None)
    assert not torch.cat(model.gaps(untimed, *places(rows))).any()
    assert model(untimed).logit.isfinite().all()
    assert not torch.equal(model(untimed).logit, model(rows).logit)


def made(schema: Schema) -> SLiRec:
    """A model whose weights are far from 0, in evaluation."""
    torch.manual_seed(0)
    model = SLiRec(timed(schema), dim=4, attention=(5,), hidden=(6,), id_dropout=0.0)
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.7 * torch.randn_like(weight)
        model.items.table.weight[PADDING] = 0.0
        model.levels.level.copy_(LEVEL)
    return model.eval()


def test_one_candidate_after_the_other(schema: Schema, rows: Batch) -> None:
    model, expected = made(schema), torch.zeros(rows.item.shape)
    assert rows.history is not None
    row, column = places(rows)
    interval, span, idle = model.gaps(rows, row, column)
    items, unit, moved = model.items, model.short, model.short.transfer
    assert moved is not None
    states = model.lstm(items(rows.history[row, column]).flatten(1), row, 5, interval, span)
    for b, c in itertools.product(range(5), range(2)):
        q, x, h = items(rows.item[b, c]).flatten(), items(rows.history[row, column])[row == b].flatten(1), states[row == b]
        scores = [unit.rest((unit.event(e) + unit.query(q) + unit.both(moved(e) * q))[None])[0, 0] for e in h]
        long = short = torch.zeros(4)
        if len(x):
            long = torch.softmax(x @ model.long.weight[0], 0) @ x
            short = torch.softmax(torch.stack(scores), 0) @ h
        alpha = torch.sigmoid(model.fusion(torch.cat([q, short, long, idle[b, None]])))
        fields = [model.users(rows.user[b])[0], model.domain.weight[rows.domain[b] + 1]]
        taste = alpha * short + (1 - alpha) * long
        expected[b, c] = model.mlp(torch.cat([*fields, q, taste]))[0] + LEVEL[rows.domain[b]]
    torch.testing.assert_close(model(rows).logit, expected)


def test_the_lstm_is_as_wide_as_an_item_with_its_fields() -> None:
    schema = Schema(Entity("user", (), 4, 4), Entity("item", (), 4, 4), (Domain("a"),), label="click")
    assert SLiRec(schema, dim=8).lstm.hidden == 8
