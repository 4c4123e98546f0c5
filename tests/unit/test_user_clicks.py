"""What users clicked beyond what was expected: against loops, grown, and without a row's own impression in training."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from isthmus.layers.biases import Biases
from isthmus.layers.user_clicks import UserClicks
from isthmus.schema import Domain, Entity, Schema

USERS, ITEMS, SHRINK = 6, 5, 2.0


def schema(domains: int, users: int = USERS) -> Schema:
    names = tuple(Domain(f"d{n}") for n in range(domains))
    return Schema(Entity("user", (), users, users), Entity("item", (), ITEMS, ITEMS), names, label="click")


def data(rows: list[tuple[int, int, int, int]], domains: int) -> Any:
    """Rows of user, item, domain and click, by domain."""
    user, item, domain, label = np.array(sorted(rows, key=lambda row: row[2])).T
    offsets = np.searchsorted(domain, np.arange(domains + 1))
    part = SimpleNamespace(user=user, item=item, domain=domain, label=label.astype(np.float32), offsets=offsets)
    return SimpleNamespace(part=lambda _: part)


ROWS = [(2, 2, 0, 1), (2, 3, 0, 0), (3, 2, 0, 0), (2, 2, 1, 1), (2, 4, 1, 1), (3, 4, 1, 0), (4, 3, 1, 0), (4, 3, 0, 1), (2, 3, 0, 0)]


def rate(rows: list[tuple[int, int, int, int]], item: int, domain: int) -> float:
    clicks = [c for _, _, d, c in rows if d == domain]
    mean = (sum(clicks) + 0.5) / (len(clicks) + 1)
    own = [c for _, i, d, c in rows if (i, d) == (item, domain)]
    return (sum(own) + SHRINK * mean) / (len(own) + SHRINK)


def by_hand(rows: list[tuple[int, int, int, int]], user: int, domains: tuple[int, ...]) -> list[float]:
    mine = [(c, rate(rows, i, d)) for u, i, d, c in rows if u == user and d in domains]
    return [sum(c - p for c, p in mine), sum(p * (1 - p) for _, p in mine)]


def test_sums_here_and_elsewhere_against_loops() -> None:
    clicks = UserClicks(schema(2), SHRINK)
    clicks.take(data(ROWS, 2))
    for user in range(USERS):
        for domain in (0, 1):
            found = clicks.here_and_elsewhere(torch.tensor([user]), torch.tensor([domain]))
            expected = by_hand(ROWS, user, (domain,)) + by_hand(ROWS, user, (1 - domain,))
            assert torch.cat(found, 1)[0].tolist() == pytest.approx(expected, abs=1e-5)
    assert by_hand(ROWS, 2, (0,)) != [0.0, 0.0]


def test_what_an_impression_counts() -> None:
    biases = Biases(schema(2), SHRINK)
    biases.take(data(ROWS, 2))
    p = rate(ROWS, 2, 0)
    found = UserClicks.of(biases, torch.tensor([2, 2]), torch.tensor([0, 0]), torch.tensor([1.0, 0.0]))
    assert found.tolist() == [pytest.approx([1 - p, p * (1 - p)], abs=1e-6), pytest.approx([-p, p * (1 - p)], abs=1e-6)]
    assert math.isclose(p, (1 + 2 * 2.5 / 6) / 4)


def test_a_grown_table_keeps_the_old_domains_and_adds_to_what_new_ones_know() -> None:
    old = UserClicks(schema(2), SHRINK)
    old.take(data(ROWS, 2))
    more = [(2, 2, 2, 1), (5, 3, 2, 0), (7, 3, 2, 1), (2, 3, 2, 0)]
    new = UserClicks(schema(3, users=USERS + 3), SHRINK)
    new.take(data([(3, 2, 0, 1), *more], 3))  # what the new data say of an old domain is not counted again
    assert new.grow_from(old) == {"keys", "rows", "generation"}
    users = torch.tensor([2, 3, 4, 5, 7])
    for domain in (0, 1):
        code = users.clamp_max(USERS - 1)
        before = old.here_and_elsewhere(code[:4], torch.full_like(code[:4], domain))
        now = new.here_and_elsewhere(users[:4], torch.full_like(users[:4], domain))
        assert torch.equal(torch.cat(before, 1), torch.cat(now, 1))
    own, elsewhere = new.here_and_elsewhere(users, torch.full_like(users, 2))
    for n, user in enumerate(users.tolist()):
        assert own[n].tolist() == pytest.approx(by_hand(more, user, (2,)), abs=1e-5)
        assert elsewhere[n].tolist() == pytest.approx(by_hand(ROWS, user, (0, 1)), abs=1e-5)
