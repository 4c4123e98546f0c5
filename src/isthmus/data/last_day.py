"""The resampling of the DADIN paper (its Algorithm 2): users held out, and judged on their last day in the target domain."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from isthmus.data.split import KNOWN, LAST_DAY, TEST, TRAIN, UNUSED, VALID, Split, made
from isthmus.errors import SplitError

if TYPE_CHECKING:
    from isthmus.data.events import Events

A_DAY = {"s": 86_400, "ms": 86_400_000, "us": 86_400_000_000, "ns": 86_400_000_000_000, "step": 1}


def last_day(events: Events, target: str, train: float = 0.8, cross: float = 0.2, seed: int = 0, others: bool = False) -> Split:
    """Users of ``target`` are sampled; those left out are new there when they are judged.

    1. The users of ``target`` are all that are sampled.
    2. A random share ``train`` of them trains, with all their events in every domain.
    3. Of these a share ``cross`` loses the events of its last day in ``target`` (a calendar day, UTC) to validation or test.
    4. The other users' events of their last day in ``target`` are validation or test.  Their earlier ones there are not used, and what
       they did in other domains is known: their rows' histories hold what lies before.

    Half of the users that are judged validate, the other half tests.  With seeds 0 to 9 it is the paper's ten resamplings.

    Args:
        events: timed; in steps, a day is a step.
        target: name of the domain.
        train: of the target's users (the paper's A_train), above 0 and up to 1.
        cross: of the training users (its A_cross), between 0 and 1.
        seed: draws the users.
        others: users without an event in ``target`` train too; False: as printed, they are not used.

    Raises:
        SplitError: no times, shares out of range, or a part or a domain's training part left without events.
        ConfigError: no such domain.
    """
    index = events.schema.domain_index(target)
    if events.time is None:
        raise SplitError("events without times", "times, to know a last day", "use cold_users, which needs none")
    if not 0 < train <= 1 or not 0 <= cross <= 1 or (train == 1 and cross == 0):
        raise SplitError(f"train={train}, cross={cross}", "shares that leave users to train and users to judge", "try 0.8 and 0.2")
    own = events.domain == index
    drawn = np.random.default_rng(seed).permutation(np.unique(events.user[own]))
    trained = round(train * len(drawn))
    crossing, fresh = drawn[: round(cross * trained)], drawn[trained:]
    part_of_user = np.full(len(events.user_ids), TRAIN if others else UNUSED, np.uint8)
    part_of_user[drawn[:trained]] = TRAIN
    part_of_user[fresh] = KNOWN
    part = part_of_user[events.user]
    last = own & (events.time // A_DAY[events.schema.time_unit] == _last_day(events, own)[events.user])
    part[own & (part == KNOWN)] = UNUSED  # who is judged as new is new
    judged = np.full(len(part_of_user), UNUSED, np.uint8)
    for users in (crossing, fresh):
        judged[users[: len(users) // 2]] = VALID
        judged[users[len(users) // 2 :]] = TEST
    rows = last & (judged[events.user] != UNUSED)
    part[rows] = judged[events.user][rows]
    params = {"target": target, "train": train, "cross": cross, "seed": seed, "others": others, "users": len(drawn)}
    return made(events, part, LAST_DAY, params)


def _last_day(events: Events, own: np.ndarray) -> np.ndarray:
    """(users,) the last day of each user in the target; of no use for others."""
    assert events.time is not None
    day = np.full(len(events.user_ids), np.iinfo(np.int64).min)
    np.maximum.at(day, events.user[own], events.time[own] // A_DAY[events.schema.time_unit])
    return day
