"""What happens in a made-up world: who meets which item when, given what is true."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from scipy.special import expit, logsumexp

from isthmus.data.tastes import SPAN, START, Side, Truth
from isthmus.errors import ConfigError

CHUNK = 4_000_000  # numbers per temporary matrix

Drawn = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def covering(rng: np.random.Generator, side: Side, d: int, n: int) -> np.ndarray:
    """(n,) entities drawn by weight; when n allows it, each one at least once."""
    members = side.members[d]
    weight = side.weight[d, members]
    drawn = rng.choice(members, size=n, p=weight / weight.sum())
    if n >= len(members):
        drawn[: len(members)] = members
    return rng.permutation(drawn)


def impressions(rng: np.random.Generator, truth: Truth, d: int, n: int) -> Drawn:
    """User, item, time and utility of n pairs that do not depend on taste."""
    user, item = covering(rng, truth.users, d, n), covering(rng, truth.items, d, n)
    time = START + rng.integers(0, SPAN, n)
    return user, item, time, truth.utility(d, user, item, time)


def intercept(utility: np.ndarray, rate: float) -> float:
    """The offset at which the mean of sigmoid(offset + utility) is ``rate``, by bisection."""
    low, high = -40.0, 40.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if expit(middle + utility).mean() < rate else (low, middle)
    return (low + high) / 2


def choices(rng: np.random.Generator, truth: Truth, d: int, n: int) -> Drawn:
    """User, item, time and probability.  Round j makes the j-th choice of every user who has one, among the items not chosen before."""
    shown = truth.items.members[d]
    user, time = _choosers(rng, truth.users, d, n, len(shown) // 2), START + rng.integers(0, SPAN, n)
    order = np.lexsort((time, user))
    user, time = user[order], time[order]
    first = np.searchsorted(user, user)
    turn = np.arange(n) - first
    item, probability = np.empty(n, np.int64), np.empty(n)
    for rows in _rounds(turn, max(1, CHUNK // len(shown))):
        utility = truth.utilities(d, user[rows], time[rows])
        _mask_chosen(utility, item, first[rows], int(turn[rows[0]]), shown)
        pick = np.argmax(utility + rng.gumbel(size=utility.shape), axis=1)
        item[rows] = shown[pick]
        probability[rows] = np.exp(utility[np.arange(len(rows)), pick] - logsumexp(utility, axis=1))
    return user, item, time, probability


def _choosers(rng: np.random.Generator, users: Side, d: int, n: int, most: int) -> np.ndarray:
    """(n,) users by activity, none more than ``most`` times: what is too much for one goes to others at random."""
    if n > most * len(users.members[d]):
        came = f"{n} choices by {len(users.members[d])} users of domain {d}"
        raise ConfigError(came, f"at most {most} by each, half of the items", "give fewer events, or more users or items")
    user = covering(rng, users, d, n)
    while True:
        count = np.bincount(user, minlength=len(users.group))
        order = np.argsort(user, kind="stable")
        turn = np.arange(n) - np.searchsorted(user[order], user[order])
        excess = order[turn >= most]
        if not len(excess):
            return user
        room = users.members[d][count[users.members[d]] < most]
        user[excess] = rng.choice(room, size=len(excess))


def _rounds(turn: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Rows of one turn, at most ``size`` at a time, turn after turn."""
    order = np.argsort(turn, kind="stable")
    bounds = np.searchsorted(turn[order], np.arange(turn.max() + 2))
    for begin, end in pairwise(bounds):
        for at in range(begin, end, size):
            yield order[at : min(at + size, end)]


def _mask_chosen(utility: np.ndarray, item: np.ndarray, first: np.ndarray, turns: int, shown: np.ndarray) -> None:
    """Sets to -inf what each user has chosen in the ``turns`` earlier choices, stored from row ``first`` on."""
    if turns:
        earlier = item[first[:, None] + np.arange(turns)]
        utility[np.arange(len(first))[:, None], np.searchsorted(shown, earlier)] = -np.inf
