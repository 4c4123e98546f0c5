"""Which items a domain can show, as a part of a model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import torch
from hypothesis import given
from hypothesis import strategies as st

from isthmus.data import split
from isthmus.data.encode import encode
from isthmus.data.events import read_events
from isthmus.layers.catalogues import Catalogues
from isthmus.layers.from_data import fill
from isthmus.schema import Domain, Entity, Schema


def empty(domains: int = 3, items: int = 7) -> Catalogues:
    return Catalogues(Schema(Entity("user", (), 4, 4), Entity("item", (), items, items), tuple(Domain(f"d{d}") for d in range(domains))))


@given(st.sets(st.tuples(st.integers(0, 2), st.integers(0, 6))))
def test_an_item_is_shown_where_the_catalogue_has_it_and_nowhere_else(pairs: set[tuple[int, int]]) -> None:
    catalogues = empty()
    catalogues.fill(keys=torch.tensor(sorted(d * 7 + i for d, i in pairs), dtype=torch.int64))
    item, domain = torch.arange(7).expand(3, 7), torch.arange(3)[:, None].expand(3, 7)
    expected = [[(d, i) in pairs for i in range(7)] for d in range(3)]
    assert catalogues(item, domain).tolist() == expected
    assert [catalogues(item[0], d).tolist() for d in range(3)] == expected, "one domain for all items"


def test_nothing_is_shown_before_a_data_set_is_taken() -> None:
    assert not empty()(torch.arange(7), 0).any()


def test_the_catalogues_of_a_data_set_survive_saving(tmp_path: Path) -> None:
    frame = pl.DataFrame({"user": [1, 2, 3, 1, 2, 3, 1], "item": list("abcbcde"), "domain": list("xxxyyyx")})
    events = read_events(frame, user="user", item="item", domain="domain")
    dataset = encode(events, split.given(events, ["train"] * 6 + ["test"]), tmp_path / "data")
    model = torch.nn.ModuleList([Catalogues(dataset.schema)])
    fill(model, dataset)
    size = dataset.schema.item.size
    names = dataset.item_vocabulary.decode(np.arange(2, size)).to_list()
    shown = [{n for n, yes in zip(names, model[0](torch.arange(2, size), d).tolist(), strict=True) if yes} for d in range(2)]
    assert shown == [{"a", "b", "c"}, {"b", "c", "d"}], "e is known from the test part alone"
    assert not model[0](torch.tensor([0, 1, 0, 1]), torch.tensor([0, 0, 1, 1])).any(), "neither padding nor unknown"
    other = torch.nn.ModuleList([Catalogues(dataset.schema)])
    other.load_state_dict(model.state_dict())
    assert torch.equal(other[0].keys, model[0].keys)
