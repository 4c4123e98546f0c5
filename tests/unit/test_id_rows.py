"""Ids that share rows: who shares with whom, by hand, and that no two ids are the same."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from isthmus.errors import ConfigError
from isthmus.layers.features import EntityFields
from isthmus.layers.id_rows import IdRows
from isthmus.schema import Entity, HashedIds, Schema


def entity(ids: int, rows: int, later: int = 0) -> Entity:
    return Entity("item", (), ids + later, ids + later + 3, HashedIds(rows, ids))


def test_rows_by_hand() -> None:
    found = IdRows(entity(30, 24, later=2))  # 12 rows are ids' own; 18 ids share 12: 10 remainders, 2 quotients
    assert found.hashed is not None
    assert (found.hashed.own, found.hashed.remainders, found.total) == (12, 10, 26)
    rows = found(torch.tensor([[0, 1, 11], [12, 21, 22], [29, 30, 31]]))
    assert rows.tolist() == [[[0, 0], [1, 0], [11, 0]], [[12, 22], [21, 22], [12, 23]], [[19, 23], [24, 0], [25, 0]]]


def test_without_hashing_a_code_is_its_row() -> None:
    found = IdRows(Entity("item", (), 5, 7))
    assert (found.each, found.total) == (1, 5)
    assert found(torch.tensor([0, 3])).tolist() == [[0], [3]]


@given(st.integers(50, 20_000), st.floats(0.0, 1.0), st.integers(0, 5))
def test_no_two_ids_have_the_same_rows_and_none_is_wasted(ids: int, share: float, later: int) -> None:
    least = 4 * int((ids - 1) ** 0.5 + 1)
    rows = min(ids - 1, max(least, int(share * ids)))
    found = IdRows(entity(ids, rows, later))
    codes = torch.arange(ids + later)
    pairs = found(codes)
    assert len(pairs.unique(dim=0)) == len(codes)
    assert int(pairs.min()) == 0
    assert int(pairs.max()) == found.total - 1 == rows + later - 1
    assert found.hashed is not None
    m, rest = found.hashed.remainders, ids - found.hashed.own
    assert m + 1 + -(-rest // (m + 1)) > rows - found.hashed.own  # no larger divisor would do
    assert torch.equal(pairs[: found.hashed.own], torch.stack([codes, 0 * codes], 1)[: found.hashed.own])


@pytest.mark.parametrize("rows", [3, 39, 100, 101, 50.5])
def test_too_few_or_too_many_rows_are_refused(rows: float) -> None:
    with pytest.raises(ConfigError, match=r"(?s)rows for 100 ids.*40 at least"):
        HashedIds(rows, 100)  # type: ignore[arg-type]
    assert HashedIds(40, 100).own == 20


def test_vectors_are_sums_and_means_agree() -> None:
    layer = EntityFields(entity(60, 32), 3, id_dropout=0.0, std=1.0).eval()
    weight, codes = layer.table.weight, torch.tensor([[0, 1, 5, 59], [0, 0, 30, 58]])
    first, second = layer.ids(codes).unbind(-1)
    found = layer(codes)
    assert found.shape == (2, 4, 1, 3)
    torch.testing.assert_close(found[:, :, 0], weight[first] + weight[second])
    assert not found[codes == 0].any()
    count = (codes != 0).sum(1)[:, None, None]
    torch.testing.assert_close(layer.mean(codes), found.sum(1) / count)


def test_a_schema_keeps_it_and_its_fingerprint_does_not_know() -> None:
    plain = Schema(Entity("user", (), 90, 95), Entity("item", (), 60, 60))
    hashed = plain.hashed(None, HashedIds(32, 60))
    assert Schema.from_dict(hashed.to_dict()) == hashed
    assert "hashed" not in plain.to_dict()["item"]
    assert hashed.fingerprint() == plain.fingerprint() != dataclasses.replace(plain, label="click").fingerprint()
