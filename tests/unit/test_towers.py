"""The frame of two-tower retrievers: what reaches the towers, and what does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from isthmus.batch import Batch, Needs
from isthmus.errors import ConfigError
from isthmus.layers.features import ContextFields, EntityFields
from isthmus.layers.table import Table
from isthmus.layers.towers import Residual, Towers
from isthmus.schema import UNKNOWN, Domain, Entity, Field, Schema

DIM, ITEMS, USERS, DOMAINS = 3, 9, 6, 3
PLAIN = Schema(Entity("user", (), USERS, USERS), Entity("item", (), ITEMS - 1, ITEMS), tuple(Domain(d) for d in "abc"))
RICH = dataclasses.replace(
    PLAIN,
    user=Entity("user", (Field("age", "numeric"), Field("group", "categorical", 4)), USERS, USERS),
    item=Entity("item", (Field("price", "numeric"), Field("tags", "multi", 5), Field("brand", "categorical", 4)), ITEMS - 1, ITEMS),
    context=(Field("hour", "numeric"), Field("words", "multi", 4), Field("device", "categorical", 4)),
)
BATCH = Batch(
    user=torch.tensor([2, 3, 3, 5, 2]),
    item=torch.tensor([[2], [3], [4], [5], [2]]),
    domain=torch.tensor([0, 0, 1, 2, 2]),
    offsets=(0, 2, 3, 5),
    history=torch.tensor([[0, 2, 3, 3], [0, 0, 0, 0], [4, 5, 6, 7], [0, 0, 0, 8], [0, 0, 2, 3]]),
    cross_history=torch.tensor([[0, 4], [5, 6], [0, 0], [0, 2], [0, 3]]),
)


class Scaled(nn.Module):
    """The sum of the fields, each with its own weight, times 1 + the domain: tells fields and domains apart."""

    def __init__(self, fields: int, dim: int) -> None:
        super().__init__()
        self.weight = 1 + torch.arange(fields)[:, None] * torch.linspace(0.5, 1, dim)

    def forward(self, x: Tensor, offsets: Sequence[int]) -> Tensor:
        """(N, fields, dim) -> (N, dim)."""
        size = torch.tensor(offsets).diff()
        return (x * self.weight).sum(1) * (1 + torch.arange(len(size)).repeat_interleave(size))[:, None]


def towers(schema: Schema = PLAIN, **settings: Any) -> Towers:
    """In evaluation mode, with weights of size 1."""
    torch.manual_seed(0)
    made = Towers(schema, Scaled, dim=DIM, **settings)
    with torch.no_grad():
        for module in made.modules():
            if isinstance(module, Table):
                module.weight[1:].normal_()
            elif isinstance(module, EntityFields):
                module.field_rows.copy_(module.field_rows + (module.starts[0] + 2 if module.categorical else 0))
                module.numeric.fill_(1.5)
    return made.eval()


def changed(batch: Batch = BATCH, **columns: Any) -> Batch:
    return dataclasses.replace(batch, **columns)


def moved(first: Tensor, second: Tensor) -> list[bool]:
    """Which rows differ."""
    return (first != second).flatten(1).any(1).tolist()


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("temperature", (0, 0.0, -0.1, float("inf"), float("nan"))),
        ("dim", (0, -3)),
        ("id_dropout", (-0.01, 1, 1.5, float("nan"))),
        ("history_dropout", (-0.01, 1, 1.5, float("nan"))),
    ],
)
def test_refuses_numbers_out_of_range(name: str, values: tuple[float, ...]) -> None:
    for value in values:
        with pytest.raises(ConfigError, match=rf"^{name} = {value!r}\n"):
            Towers(PLAIN, Scaled, **{"dim": DIM, name: value})


def test_takes_numbers_at_the_edge_of_their_range() -> None:
    frame = Towers(PLAIN, Scaled, dim=1, id_dropout=0.0, history_dropout=0.999, temperature=1e-6)
    assert frame.user(BATCH).isfinite().all()


# ---------------------------------------------------------------- user side


def test_user_fields_by_hand() -> None:
    frame = towers()
    assert frame.user_names == ("id", "domain", "history id", "elsewhere id")
    assert frame.item_names == ("id", "domain")
    item, found = frame.items.table.weight, frame.user_fields(BATCH)
    torch.testing.assert_close(found[:, 0], frame.users.table.weight[[2, 3, 3, 5, 2]])
    torch.testing.assert_close(found[:, 1], frame.user_domain.weight[[1, 1, 2, 3, 3]])
    past = [(item[2] + 2 * item[3]) / 3**0.5, 0 * item[2], item[[4, 5, 6, 7]].sum(0) / 2, item[1], (item[2] + item[3]) / 2**0.5]
    torch.testing.assert_close(found[:, 2], torch.stack(past))  # item 8 is not trained: the unknown item's vector
    elsewhere = [item[4], (item[5] + item[6]) / 2**0.5, 0 * item[2], item[2], item[3]]
    torch.testing.assert_close(found[:, 3], torch.stack(elsewhere))


def test_names_stand_where_their_fields_do() -> None:
    frame = towers(RICH)
    assert frame.user_names == (
        *("id", "group", "age", "domain", "words", "device", "hour"),
        *(f"{kind} {name}" for kind in ("history", "elsewhere") for name in ("id", "brand", "tags", "price")),
    )
    assert frame.item_names == ("id", "brand", "tags", "price", "domain")
    frame.items.multi_rows = torch.full((ITEMS,), frame.items.starts[1] + 2, dtype=torch.int32)
    frame.items.multi_offsets.copy_(torch.arange(ITEMS + 1)[None])
    one = torch.tensor([2, 3, 2, 3, 2])
    batch = changed(context={"hour": torch.ones(5), "words": one[:, None].expand(5, 2), "device": one})
    assert isinstance(frame.context, ContextFields)
    for kind, field in (("categorical", "brand"), ("multi", "tags"), ("numeric", "price")):
        _only_moves(frame, batch, frame.items, kind, field)
    for kind, field in (("categorical", "group"), ("numeric", "age")):
        _only_moves(frame, batch, frame.users, kind, field)
    before = frame.user_fields(batch)
    for field, value in (("hour", torch.zeros(5)), ("words", 5 - batch.context["words"]), ("device", 5 - one)):
        after = frame.user_fields(changed(batch, context=batch.context | {field: value}))
        assert [n for k, n in enumerate(frame.user_names) if not torch.equal(before[:, k], after[:, k])] == [field]


def _only_moves(frame: Towers, batch: Batch, entity: EntityFields, kind: str, field: str) -> None:
    """A change of one field's vectors moves the fields of that name alone."""
    item, domain = torch.arange(2, 7), torch.tensor([0, 0, 1, 2, 2])
    before = frame.user_fields(batch), frame.item_fields(item, domain)
    with torch.no_grad():
        if kind == "numeric":
            assert entity.numbers is not None
            entity.numbers.slope.add_(1)
        else:
            start = entity.starts[0 if kind == "categorical" else 1]
            entity.table.weight[start : start + 4].add_(1)
    after = frame.user_fields(batch), frame.item_fields(item, domain)
    for names, x, y in zip((frame.user_names, frame.item_names), before, after, strict=True):
        assert {n for k, n in enumerate(names) if not torch.equal(x[:, k], y[:, k])} == {n for n in names if n.split()[-1] == field}


def test_histories_here_and_elsewhere_reach_the_vector_and_padding_does_not() -> None:
    frame = towers()
    vector = frame.user(BATCH)
    assert BATCH.history is not None
    assert BATCH.cross_history is not None
    for name in ("history", "cross_history"):
        other = getattr(BATCH, name).clone()
        other[0, -1] = 6
        assert moved(vector, frame.user(changed(**{name: other}))) == [True, False, False, False, False]
        longer = torch.nn.functional.pad(getattr(BATCH, name), (3, 0))
        torch.testing.assert_close(frame.user(changed(**{name: longer})), vector)
        turned = getattr(BATCH, name).flip(1)
        torch.testing.assert_close(frame.user(changed(**{name: turned})), vector, msg="a bag: only what it holds counts")
    assert all(moved(vector, frame.user(changed(history=BATCH.cross_history, cross_history=BATCH.history)))), "they are two fields"
    assert frame.user(changed(history=BATCH.history * 0, cross_history=BATCH.cross_history * 0)).isfinite().all()


def test_without_a_user_id_equal_histories_give_equal_vectors() -> None:
    strangers = changed(user=torch.full((5,), UNKNOWN))
    without = towers(user_id=False)
    assert without.user_names == ("domain", "history id", "elsewhere id")
    assert torch.equal(without.user(BATCH), without.user(strangers))
    assert all(moved(towers().user(BATCH), towers().user(strangers)))


def test_needs_are_what_is_read() -> None:
    without = towers(history=False)
    assert without.needs == Needs(context=True)
    assert without.user_names == ("id", "domain")
    bare = changed(history=None, cross_history=None)
    assert torch.equal(without.user(bare), without.user(BATCH))
    assert towers().needs == Needs(history=True, cross_history=True, context=True)
    with pytest.raises(AssertionError):
        towers().user(bare)


# ---------------------------------------------------------------- tables, temperature, order


def test_tied_and_untied_tables() -> None:
    for tied in (True, False):
        frame = towers(tied=tied)
        frame.user(BATCH).sum().backward()
        reached = frame.items.table.weight.grad
        assert (reached is not None) == tied, "what she chose goes through the candidates' table"
        frame.zero_grad()
        frame.item(torch.tensor([2, 3]), torch.tensor([0, 1])).sum().backward()
        assert frame.items.table.weight.grad is not None
        assert frame.items.table.weight.grad[[2, 3]].abs().min() > 0
        assert tied or not (frame.chosen.table.weight.grad is not None and frame.chosen.table.weight.grad.any())
    count = [sum(p.numel() for p in towers(tied=t).parameters()) for t in (True, False)]
    assert count[1] - count[0] == (ITEMS - 1) * DIM


def test_temperature_gives_cosines() -> None:
    item, domain = torch.tensor([2, 5, 7]), torch.tensor([0, 1, 1])
    plain, cosine = towers(), towers(temperature=0.25)
    user, vector = plain.user(BATCH), plain.item(item, domain)
    torch.testing.assert_close(cosine.user(BATCH).norm(dim=1), torch.full((5,), 4.0))
    torch.testing.assert_close(cosine.item(item, domain).norm(dim=1), torch.ones(3))
    expected = nn.functional.cosine_similarity(user[:, None], vector[None], dim=-1) / 0.25
    torch.testing.assert_close(cosine.user(BATCH) @ cosine.item(item, domain).T, expected)


def test_a_bias_adds_one_number_to_an_items_score_in_one_domain() -> None:
    plain, biased = towers(), towers(bias=True)
    assert biased.bias is not None
    biased.load_state_dict({**plain.state_dict(), "bias.table.weight": biased.bias.table.weight})
    item, domain = torch.tensor([2, 2, 7, 8, 0]), torch.tensor([0, 2, 1, 1, 2])
    with_, without = biased.item(item, domain), plain.item(item, domain)
    torch.testing.assert_close(with_[:, :-1], without)
    known = ITEMS - 1
    own = biased.bias.table.weight[[1 + 2, 1 + 2 * known + 2, 1 + known + 7], 0]
    assert len(set(own.tolist())) == 3
    torch.testing.assert_close(with_[:, -1], torch.cat([own, torch.zeros(2)]))
    score = biased.user(BATCH) @ with_.T
    torch.testing.assert_close(score, plain.user(BATCH) @ without.T + with_[:, -1])


def test_items_in_any_order_and_shape() -> None:
    frame, generator = towers(), torch.Generator().manual_seed(0)
    item, domain = torch.arange(1, ITEMS).repeat(DOMAINS), torch.arange(DOMAINS).repeat_interleave(ITEMS - 1)
    own = frame.items.table.weight[item.where(item < ITEMS - 1, UNKNOWN)]
    by_hand = (own * 1 + frame.item_domain.weight[domain + 1] * (1 + torch.linspace(0.5, 1, DIM))) * (domain + 1)[:, None]
    torch.testing.assert_close(frame.item(item, domain), by_hand)
    order = torch.randperm(len(item), generator=generator)
    torch.testing.assert_close(frame.item(item[order].view(2, 4, 3), domain[order].view(2, 4, 3)), by_hand[order].view(2, 4, 3, DIM))
    torch.testing.assert_close(frame.item(item[-3:], domain[-3:]), by_hand[-3:], msg="without a row of the first domains")
    torch.testing.assert_close(frame.item(item[:4, None].expand(4, 2), domain[:4, None].expand(4, 2))[:, 1], by_hand[:4])
    assert frame.item(item[:0], domain[:0]).shape == (0, DIM)


# ---------------------------------------------------------------- training


def test_ids_are_dropped_in_training_only() -> None:
    frame = towers(tied=False)
    frame.users.id_dropout = 1.0
    kept = frame.user_fields(BATCH)
    gone = frame.train().user_fields(BATCH)
    assert torch.equal(gone[:, 0], frame.users.table.weight[[UNKNOWN] * 5])
    assert torch.equal(gone[:, 1:], kept[:, 1:]), "neither domains nor histories"
    assert torch.equal(frame.eval().user_fields(BATCH), kept)


def test_history_events_are_dropped_in_training_only() -> None:
    long = changed(history=torch.randint(2, 8, (5, 2000)), cross_history=torch.randint(2, 8, (5, 2000)))
    frame = towers(history_dropout=0.3, id_dropout=0.0, tied=False)
    with torch.no_grad():
        frame.chosen.table.weight[1:] = 1.0  # then n events give n / sqrt(n)
    torch.testing.assert_close(frame.user_fields(long)[:, 2:], torch.full((5, 2, DIM), 2000**0.5))
    left = frame.train().user_fields(long)[:, 2:].square()
    assert left.sub(1400).abs().max() < 5 * (2000 * 0.3 * 0.7) ** 0.5
    assert any(moved(left[:, 0], left[:, 1])), "drawn apart"
    frame.history_dropout = 1.0
    assert not frame.user_fields(BATCH)[:, 2:].any()


def test_a_residual_network_starts_as_the_sum_of_the_fields() -> None:
    class Last(nn.Module):
        """(N, fields * dim) -> the last dim of them."""

        def forward(self, x: Tensor, offsets: Sequence[int]) -> Tensor:
            return x[:, -DIM:]

    x = torch.randn(4, 2, DIM)
    made = Residual(Last())
    torch.testing.assert_close(made(x, (0, 4)), x[:, 0] + x[:, 1])
    assert made.gate is not None
    made.gate.data.fill_(3.0)
    torch.testing.assert_close(made(x, (0, 4)), x[:, 0] + 4 * x[:, 1])
    assert torch.equal(Residual(Last(), residual=False)(x, (0, 4)), x[:, 1])
