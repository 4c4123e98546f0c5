"""What ``encode`` sorts by user: histories, training positives, numbers of training events.

Users are taken block after block, in order of their codes, so that what sorting needs does not grow with the data; a block's columns
go to the end of their files, and nothing of them stays in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isthmus import arrow
from isthmus.data.ahead import ahead
from isthmus.data.chunks import THREADS, chunks, count, order_of, starts
from isthmus.data.events import Events
from isthmus.data.split import TRAIN, Split
from isthmus.segments import Segments
from isthmus.storage import write_json

BLOCK, MOST_BLOCKS = 1 << 20, 250  # events sorted at once, at least; and how many times at most the users are divided
NOBODY = -1  # a domain that no event has
SENTINEL = np.iinfo(np.int64).max
REMEMBERED, SEEN, TRAINED = 1, 2, 4  # what an event is for: histories, the known positives, the numbers of training events
PADDED = {  # columns of events, whose place 0 is padding
    "item": np.int32,
    "time": np.int64,
    "behaviour": np.int8,
    "label": np.float32,
    "event": np.int32,
    "domain": np.int16,
    "run": np.int32,
}


@dataclass(frozen=True)
class Block:
    """All events of some users, n of them, in stored order.

    Attributes:
        user, item: (n,) codes.
        domain: (n,) indices.
        use: (n,) uint8, sums of ``REMEMBERED``, ``SEEN``, ``TRAINED``.
        time: (n,) integers, or None.
        behaviour: (n,) codes from 1, or None.
        label: (n,) ratings, or None.
    """

    user: np.ndarray
    item: np.ndarray
    domain: np.ndarray
    use: np.ndarray
    time: np.ndarray | None = None
    behaviour: np.ndarray | None = None
    label: np.ndarray | None = None


def write_by_user(folder: Path, events: Events, split: Split, user_code: np.ndarray, item_code: np.ndarray) -> None:
    """Writes ``history``, ``seen`` and ``counts`` of encoded events.

    Args:
        folder: of the data set.
        events: the events.
        split: which of them may be looked back at, and which train; without times, those of train alone may.
        user_code, item_code: codes of the events' ids.
    """
    use = _uses(events, split)
    number = count(events.user, len(user_code), lambda rows: use[rows] > 0)
    by_code = np.zeros(int(user_code.max(initial=0)) + 1, np.int64)
    by_code[user_code] = number
    place = (np.cumsum(by_code) - by_code) // max(BLOCK, int(number.sum()) // MOST_BLOCKS)
    blocks = int(place[-1]) + 1
    block_of_user = place[user_code].astype(np.uint8)
    block_of = np.full(len(use), blocks, np.uint8)  # events for nothing belong to none
    for rows in chunks(len(use)):
        np.copyto(block_of[rows], block_of_user[events.user[rows]], where=use[rows] > 0)
    rated = events.label if events.schema.label == "rating" else None

    def take(number: int) -> Block:
        rows = np.flatnonzero(block_of == number)
        return Block(
            user_code[events.user[rows]],
            item_code[events.item[rows]],
            events.domain[rows],
            use[rows],
            None if events.time is None else events.time[rows],
            None if events.behaviour is None else events.behaviour[rows] + np.int8(1),
            None if rated is None else rated[rows],
        )

    write_blocks(folder, take, blocks, len(events.schema.domains))


def _uses(events: Events, split: Split) -> np.ndarray:
    """(N,) uint8: what each event is for."""
    known, use = split.in_history(), np.zeros(len(events), np.uint8)
    positive = events.positive()
    for rows in chunks(len(use)):
        train = split.part[rows] == TRAIN
        remembered = positive[rows] & (train if events.time is None else known[rows])
        use[rows] = remembered * np.uint8(REMEMBERED) + (train & positive[rows]) * np.uint8(SEEN) + train * np.uint8(TRAINED)
    return use


def write_blocks(folder: Path, take: Callable[[int], Block], blocks: int, domains: int) -> None:
    """Writes what is sorted by user.

    Args:
        folder: gets the folders ``history``, ``seen`` and ``counts``.
        take: number -> a block; of users whose codes are above those of the block before.
        blocks: how many there are, at least one.
        domains: number of domains.
    """
    with ExitStack() as stack:
        found = ahead(lambda number: _sorted(take(number), domains), range(blocks), THREADS, THREADS)
        files, at, values = dict[str, arrow.Column](), 1, 0
        for block in found:
            if not files:
                for name, column in block.items():
                    files[name] = stack.enter_context(arrow.column(folder / f"{name}.arrow", column.dtype))
                    if (kept := Path(name)).parent.name == "history" and kept.name in PADDED:
                        files[name].append(np.array([NOBODY if kept.name == "domain" else 0]))  # place 0 is padding
            block["history/start"] += at
            block["seen/offsets"] += values
            for name, column in block.items():
                files[name].append(column)
            at, values = at + len(block["history/item"]), values + len(block["seen/values"])
        files["history/pair"].append(np.array([SENTINEL]))
        files["history/start"].append(np.array([at]))
        files["seen/offsets"].append(np.array([values]))
        columns = sorted(Path(name).name for name in files if Path(name).parent.name == "history")
        write_json(folder / "history" / "history.json", {"domains": domains, "columns": columns})


def _sorted(block: Block, domains: int) -> dict[str, np.ndarray]:
    """A block's columns by file; ``start`` and ``offsets`` count from the block's own first event and value."""
    pair = block.user.astype(np.int64) * domains + block.domain
    history = {f"history/{name}": column for name, column in _history(block, pair).items()}
    seen, low = (block.use & SEEN) > 0, int(pair.min(initial=0))
    segments = Segments.build(pair[seen] - low, block.item[seen])
    trained = np.sort(pair[(block.use & TRAINED) > 0])
    first = starts(trained)
    return history | {
        "seen/keys": segments.keys + low,
        "seen/offsets": segments.offsets[:-1],
        "seen/values": segments.values,
        "counts/key": trained[first],
        "counts/count": np.diff(first, append=len(trained)),
    }


def _history(block: Block, pair: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of ``isthmus.data.history``."""
    keep = np.flatnonzero(block.use & REMEMBERED)
    if block.time is None:  # without a time a history is a set: one event per user, domain and item, the last one stored
        keep = keep[_last_of_each(pair[keep], block.item[keep])]
    user, domain, pair = block.user[keep], block.domain[keep], pair[keep]
    times = () if block.time is None else (block.time[keep],)
    order, merged = order_of(pair, *times), order_of(user, *times)
    pair = pair[order]
    start = starts(pair)
    columns = {"item": block.item, "time": block.time, "behaviour": block.behaviour, "label": block.label}
    stored = keep[order]
    events = {name: values[stored].astype(PADDED[name], copy=False) for name, values in columns.items() if values is not None}
    place = np.empty(len(order), np.int64)
    place[order] = np.arange(len(order))
    return {"pair": pair[start], "start": start, **events, **_merged(place[merged], user[merged], domain[merged])}


def _merged(place: np.ndarray, user: np.ndarray, domain: np.ndarray) -> dict[str, np.ndarray]:
    """The columns in order of time over all domains.

    Args:
        place: (n,) places of the events in the order by user, domain and time.
        user, domain: (n,) theirs.
    """
    new_user, new_run = starts(user), starts(user, domain)
    begin = np.repeat(new_user, np.diff(new_user, append=len(place)))
    run = np.arange(1, len(place) + 1) - np.repeat(new_run, np.diff(new_run, append=len(place)))
    return {name: values.astype(PADDED[name]) for name, values in (("event", place - begin), ("domain", domain), ("run", run))}


def _last_of_each(pair: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Ascending positions of the last event of each (pair, item)."""
    order = order_of(pair, item)  # stable: equal ones stay in stored order
    first = starts(pair[order], item[order])
    return np.sort(order[np.append(first[1:], len(order)) - 1] if len(order) else order)
