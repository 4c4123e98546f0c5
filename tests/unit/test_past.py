"""Events of other domains without padding: which they are, sums and softmax by row, look-up."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import given
from hypothesis import strategies as st

from isthmus.batch import Batch
from isthmus.layers.bridges import Chosen
from isthmus.layers.past import past_of
from isthmus.layers.solved import find

HISTORY = torch.tensor([[0, 2, 3], [4, 5, 4], [0, 0, 0], [0, 0, 6]])
BATCH = Batch(
    user=torch.arange(4),
    item=torch.ones(4, 1, dtype=torch.int64),
    domain=torch.tensor([0, 0, 2, 2]),
    offsets=(0, 2, 2, 4),
    cross_history=HISTORY,
    cross_domain=torch.tensor([[-1, 1, 2], [2, 1, 2], [-1, -1, -1], [-1, -1, 0]]),
    cross_label=torch.tensor([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [0.0, 0.0, 0.0], [0.0, 0.0, 6.0]]),
)
ROWS = Chosen(torch.tensor([1, 2, 3]), torch.tensor([1, 2, 3]), torch.tensor([0, 2, 2]), (0, 1, 1, 3))


def test_events_of_the_chosen_rows() -> None:
    past = past_of(BATCH, ROWS, labels=True)
    assert past.row.tolist() == [0, 0, 0, 2]
    assert past.column.tolist() == [0, 1, 2, 2]
    assert past.item.tolist() == [4, 5, 4, 6]
    assert past.domain.tolist() == [2, 1, 2, 0]
    assert past.offsets == (0, 3, 3, 4)
    assert past.label is not None
    assert past.label.tolist() == [3, 4, 5, 6]
    assert past_of(BATCH, ROWS).label is None
    assert past_of(replace(BATCH, cross_label=None), ROWS, labels=True).label is None


def test_some_of_the_events() -> None:
    some = past_of(BATCH, ROWS, labels=True).where(torch.tensor([False, True, True, False]))
    assert (some.row.tolist(), some.column.tolist()) == ([0, 0], [1, 2])
    assert (some.item.tolist(), some.domain.tolist()) == ([5, 4], [1, 2])
    assert some.offsets == (0, 2, 2, 2)
    assert some.label is not None
    assert some.label.tolist() == [4, 5]
    assert some.total(torch.ones(2)).tolist() == [2, 0, 0]


def test_sums_by_row() -> None:
    past = past_of(BATCH, ROWS)
    assert past.total(torch.tensor([1.0, 2.0, 4.0, 8.0])).tolist() == [7, 0, 8]
    assert past.total(torch.tensor([[1, 0], [2, 1], [4, 0], [8, 5]])).tolist() == [[7, 1], [0, 0], [8, 5]]


def test_the_softmax_is_that_of_each_row_however_large_the_scores() -> None:
    past, score = past_of(BATCH, ROWS), torch.tensor([1000.0, 1002.0, 999.0, -1000.0], requires_grad=True)
    weight, again = past.softmax(score), score.detach().requires_grad_()
    expected = torch.cat([again[:3].softmax(0), again[3:].softmax(0)])
    torch.testing.assert_close(weight, expected)
    value = torch.tensor([1.0, -2.0, 3.0, 5.0])
    (weight * value).sum().backward()
    (expected * value).sum().backward()
    torch.testing.assert_close(score.grad, again.grad)


def test_rows_without_any_event() -> None:
    past = past_of(BATCH, Chosen(torch.tensor([2]), torch.tensor([2]), torch.tensor([2]), (0, 0, 0, 1)))
    assert past.offsets == (0, 0, 0, 0)
    assert past.total(past.softmax(torch.zeros(0))[:, None] * torch.zeros(0, 2)).tolist() == [[0, 0]]


@given(st.lists(st.integers(-5, 9)), st.lists(st.integers(-4, 8), unique=True))
def test_numbers_are_found_where_they_are(wanted: list[int], among: list[int]) -> None:
    among = sorted(among)
    place = find(torch.tensor(among, dtype=torch.int64), torch.tensor(wanted, dtype=torch.int64))
    there = place < len(among)
    assert there.tolist() == [number in among for number in wanted]
    assert [among[p] for p, found in zip(place.tolist(), there.tolist(), strict=True) if found] == [n for n in wanted if n in among]
