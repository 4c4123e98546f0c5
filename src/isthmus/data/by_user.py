"""What ``encode`` sorts by user: histories, training positives, numbers of training events.

Users are taken block after block, in order of their codes, so that what sorting needs does not grow with the data; a block's columns
go to the end of their files, and nothing of them stays in memory.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from isthmus import arrow
from isthmus.data.ahead import ahead
from isthmus.data.chunks import THREADS, by_bin, chunks, count, order_of, starts
from isthmus.data.events import Events
from isthmus.data.split import TRAIN, Split
from isthmus.segments import Segments
from isthmus.storage import write_json

BLOCK, MOST_BLOCKS = 1 << 18, 250  # events sorted at once, at least: few enough for the cache; and how many times at most users are divided
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

    def columns(self) -> dict[str, np.ndarray]:
        """Those that there are."""
        return {name: values for name, values in vars(self).items() if values is not None}


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
    block = (np.cumsum(by_code) - by_code) // max(BLOCK, int(number.sum()) // MOST_BLOCKS)
    size = np.bincount(block, by_code).astype(np.int64)
    block_of_user = block[user_code].astype(np.uint8)

    def ordered(rows: slice) -> tuple[Block, np.ndarray]:
        where = np.where(use[rows] > 0, block_of_user[events.user[rows]], len(size)).astype(np.uint8)  # events for nothing are in none
        order, found = by_bin(where, len(size))
        chosen = Block(
            user_code[events.user[rows][order]],
            item_code[events.item[rows][order]],
            events.domain[rows][order],
            use[rows][order],
            None if events.time is None else events.time[rows][order],
            None if events.behaviour is None else events.behaviour[rows][order] + np.int8(1),
            None if events.schema.label != "rating" or events.label is None else events.label[rows][order],
        )
        return chosen, found

    with ExitStack() as stack:
        blocks = _Blocks(stack, folder, size)
        for chunk, found in ahead(ordered, chunks(len(use)), THREADS, THREADS):
            blocks.put(chunk, found)
        write_blocks(folder, blocks.take, len(size), len(events.schema.domains))


class _Blocks:
    """Blocks in temporary files: picking each one's events out of the columns of all would take several times as long.

    Args:
        stack: of the files.
        folder: theirs; they have no names there.
        size: (blocks,) events of each.
    """

    def __init__(self, stack: ExitStack, folder: Path, size: np.ndarray) -> None:
        self._stack, self._folder, self._ends = stack, folder, np.cumsum(size)
        self._begins, self._at = self._ends - size, self._ends - size
        self._columns = dict[str, arrow.Column]()

    def put(self, events: Block, size: np.ndarray) -> None:
        """Events ordered by block, (blocks,) so many of each, behind those that came before."""
        given = events.columns()
        for name in given.keys() - self._columns.keys():
            file = self._stack.enter_context(tempfile.TemporaryFile(dir=self._folder))  # noqa: SIM115
            self._columns[name] = arrow.Column(file.fileno(), given[name].dtype)
        ends = np.cumsum(size)
        for n in np.flatnonzero(size).tolist():
            for name, values in given.items():
                self._columns[name].put(int(self._at[n]), values[ends[n] - size[n] : ends[n]])
        self._at = self._at + size

    def take(self, number: int) -> Block:
        """A block."""
        return Block(**{name: column.get(int(self._begins[number]), int(self._ends[number])) for name, column in self._columns.items()})


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
    times = () if block.time is None else (block.time,)
    order = order_of(block.user, *times)  # from here on a user's events are near to each other, and few cache lines are read twice
    block = Block(**{name: values[order] for name, values in block.columns().items()})
    pair = block.user.astype(np.int64) * domains + block.domain
    by_pair = order_of(pair)
    history = {f"history/{name}": column for name, column in _history(block, pair, by_pair).items()}
    seen, low = np.flatnonzero(block.use & SEEN), int(pair.min(initial=0))
    segments = Segments.build(pair[seen] - low, block.item[seen])
    trained = pair[by_pair[np.flatnonzero(block.use[by_pair] & TRAINED)]]
    first = starts(trained)
    return history | {
        "seen/keys": segments.keys + low,
        "seen/offsets": segments.offsets[:-1],
        "seen/values": segments.values,
        "counts/key": trained[first],
        "counts/count": np.diff(first, append=len(trained)),
    }


def _history(block: Block, pair: np.ndarray, by_pair: np.ndarray) -> dict[str, np.ndarray]:
    """Columns of ``isthmus.data.history``.

    Args:
        block: ordered by user and time.
        pair: (n,) user and domain in one.
        by_pair: (n,) the stable order by these.
    """
    keep = np.flatnonzero(block.use & REMEMBERED)
    if block.time is None:  # without a time a history is a set: one event per user, domain and item, the last one stored
        keep = keep[_last_of_each(pair[keep], block.item[keep])]
    kept = np.zeros(len(pair), bool)
    kept[keep] = True
    chosen = by_pair[np.flatnonzero(kept[by_pair])]
    pair = pair[chosen]
    start = starts(pair)
    columns = {"item": block.item, "time": block.time, "behaviour": block.behaviour, "label": block.label}
    events = {name: values[chosen].astype(PADDED[name], copy=False) for name, values in columns.items() if values is not None}
    place = np.empty(len(kept), np.int32)
    place[chosen] = np.arange(len(chosen))
    return {"pair": pair[start], "start": start, **events, **_merged(place[keep], block.user[keep], block.domain[keep])}


def _merged(place: np.ndarray, user: np.ndarray, domain: np.ndarray) -> dict[str, np.ndarray]:
    """The columns in order of time over all domains.

    Args:
        place: (n,) places of the events in the order by user, domain and time.
        user, domain: (n,) theirs.
    """
    begin, run = _since(starts(user), len(place)), _since(starts(user, domain), len(place))
    at = np.arange(len(place), dtype=np.int32)
    return {name: values.astype(PADDED[name]) for name, values in (("event", place - begin), ("domain", domain), ("run", at - run + 1))}


def _since(new: np.ndarray, size: int) -> np.ndarray:
    """(size,) the last of some ascending places, the first of which is 0, that is not behind a place."""
    return np.repeat(new.astype(np.int32), np.diff(new, append=size))


def _last_of_each(pair: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Ascending positions of the last event of each (pair, item)."""
    order = order_of(pair, item)  # stable: equal ones stay in stored order
    first = starts(pair[order], item[order])
    return np.sort(order[np.append(first[1:], len(order)) - 1] if len(order) else order)
