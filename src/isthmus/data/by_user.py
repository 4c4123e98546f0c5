"""What ``encode`` sorts by user: histories, training positives, numbers of training events.

Users are taken block after block, in order of their codes, so that what sorting needs does not grow with the data; a block's columns
go to the end of their files, and nothing of them stays in memory.
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from isthmus import arrow
from isthmus.data.ahead import relay
from isthmus.data.chunks import THREADS, by_bin, count
from isthmus.data.events import Events
from isthmus.data.history import NOBODY
from isthmus.data.split import TRAIN, Split
from isthmus.data.widths import Widths
from isthmus.segments import Segments
from isthmus.sorting import ascending, order_of, starts
from isthmus.storage import write_json

BLOCK, MOST_BLOCKS = 1 << 18, 250  # events sorted at once, at least: few enough for the cache; and how many times at most users are divided
SENTINEL = np.iinfo(np.int64).max
REMEMBERED, SEEN, TRAINED = 1, 2, 4  # what an event is for: histories, the known positives, the numbers of training events
PADDED = ("item", "time", "behaviour", "label", "event", "domain", "run")  # columns of events, whose place 0 is padding


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


class Users:
    """Blocks of users in temporary files, being written.

    Picking each block's events out of the columns of all would take several times as long.

    Args:
        stack: of the files.
        folder: of the data set; they have no names there.
        events: the events.
        split: which of them may be looked back at, and which train; without times, those of train alone may.
        code: codes of the events' users.
        widths: of columns.
    """

    def __init__(self, stack: ExitStack, folder: Path, events: Events, split: Split, code: np.ndarray, widths: Widths) -> None:
        self._stack, self._folder, self._events, self._uses, self._widths = stack, folder, events, _uses(events, split), widths
        number = count(events.user, len(code), lambda rows: self._uses(rows) > 0)
        by_code = np.zeros(int(code.max(initial=0)) + 1, np.int64)
        by_code[code] = number
        block = (np.cumsum(by_code) - by_code) // max(BLOCK, int(number.sum()) // MOST_BLOCKS)
        self._size, self._block = np.bincount(block, by_code).astype(np.int64), block.astype(np.uint8)
        self._begin = self._size.sum() - np.cumsum(self._size)  # the last block comes first
        self._at, self._columns = self._begin.copy(), dict[str, arrow.Column]()
        self._place_type = np.min_scalar_type(int(number.max(initial=0)))

    def read(self, rows: slice, user: np.ndarray, item: np.ndarray) -> tuple[Block, np.ndarray]:
        """A chunk of events with their codes, ordered by block, and (blocks,) how many of each; in any thread."""
        events, use, widths = self._events, self._uses(rows), self._widths
        where = np.where(use > 0, self._block.take(user), np.uint8(len(self._size)))  # events for nothing are in none
        order, size = by_bin(where, len(self._size))
        chosen = Block(
            user.take(order),
            item.take(order),
            events.domain[rows].astype(widths.domain).take(order),
            use.take(order),
            None if events.time is None else events.time[rows].astype(widths.time).take(order),
            None if events.behaviour is None else events.behaviour[rows].take(order) + np.int8(1),
            None if events.schema.label != "rating" or events.label is None else events.label[rows].take(order),
        )
        return chosen, size

    def place(self, events: Block, size: np.ndarray) -> list[arrow.Piece]:
        """Where a chunk's events go: each block's behind those of the chunks before."""
        given = events.columns()
        for name in given.keys() - self._columns.keys():
            file = self._stack.enter_context(tempfile.TemporaryFile(dir=self._folder))  # noqa: SIM115
            self._columns[name] = arrow.Column(file.fileno(), given[name].dtype)
            self._columns[name].room(int(self._size.sum()))
        ends = np.cumsum(size)
        blocks = [(int(self._at[n]), ends[n] - size[n], ends[n]) for n in np.flatnonzero(size).tolist()]
        self._at += size
        return [(self._columns[name], at, values[begin:end]) for at, begin, end in blocks for name, values in given.items()]

    def write(self) -> None:
        """Writes ``history``, ``seen`` and ``counts``."""
        write_blocks(self._folder, self._take, len(self._size), len(self._events.schema.domains), self._place_type, self._forget)

    def _take(self, number: int) -> Block:
        """A block."""
        begin = int(self._begin[number])
        return Block(**{name: column.get(begin, begin + int(self._size[number])) for name, column in self._columns.items()})

    def _forget(self, number: int) -> None:
        """A block has been read: its place is free for what is written."""
        for column in self._columns.values():
            column.cut(int(self._begin[number]))


def _uses(events: Events, split: Split) -> Callable[[slice], np.ndarray]:
    """Rows -> (n,) uint8: what each event is for."""

    def uses(rows: slice) -> np.ndarray:
        train, positive = split.part[rows] == TRAIN, events.positive(rows)
        remembered = positive & (train if events.time is None else split.in_history(rows))
        return remembered * np.uint8(REMEMBERED) + (train & positive) * np.uint8(SEEN) + train * np.uint8(TRAINED)

    return uses


def write_blocks(
    folder: Path, take: Callable[[int], Block], blocks: int, domains: int, place_type: np.dtype, forget: Callable[[int], None]
) -> None:
    """Writes what is sorted by user.

    Args:
        folder: gets the folders ``history``, ``seen`` and ``counts``.
        take: number -> a block, in any thread; of users whose codes are above those of the block before.
        blocks: how many there are, at least one.
        domains: number of domains.
        place_type: holds how many events a user has at most.
        forget: told the number of a block when it and all before it have been taken, in a thread of its own.
    """
    with ExitStack() as stack:
        files = _Files(stack, folder, domains)

        def ordered(number: int) -> tuple[int, dict[str, np.ndarray]]:
            return number, _sorted(take(number), domains, place_type)

        def put(found: tuple[int, dict[str, np.ndarray]]) -> list[Callable[[], None]]:
            return [*(partial(arrow.put, pieces) for pieces in files.place(found[1])), partial(forget, found[0])]

        relay(ordered, range(blocks), put, THREADS)
        files.end()


class _Files:
    """The files of what is sorted by user, being written."""

    def __init__(self, stack: ExitStack, folder: Path, domains: int) -> None:
        self._stack, self._folder, self._domains, self._columns = stack, folder, domains, dict[str, arrow.Column]()

    def place(self, block: dict[str, np.ndarray]) -> Iterable[list[arrow.Piece]]:
        """Where a block's columns go, those of one folder after the other: behind those of the blocks before."""
        if not self._columns:
            for name, column in block.items():
                self._open(name, column.dtype)
        block["history/start"] += self._columns["history/item"].size
        block["seen/offsets"] += self._columns["seen/values"].size
        by_folder = defaultdict[str, list[arrow.Piece]](list)
        for name, column in block.items():
            by_folder[Path(name).parent.name].append((self._columns[name], self._columns[name].room(len(column)), column))
        return by_folder.values()

    def end(self) -> None:
        """What stands behind the last block."""
        self._columns["history/pair"].append(np.array([SENTINEL]))
        self._columns["history/start"].append(np.array([self._columns["history/item"].size]))
        self._columns["seen/offsets"].append(np.array([self._columns["seen/values"].size]))
        columns = sorted(Path(name).name for name in self._columns if Path(name).parent.name == "history")
        write_json(self._folder / "history" / "history.json", {"domains": self._domains, "columns": columns})

    def _open(self, name: str, dtype: np.dtype) -> None:
        file = self._columns[name] = self._stack.enter_context(arrow.column(self._folder / f"{name}.arrow", dtype))
        if (kept := Path(name)).parent.name == "history" and kept.name in PADDED:
            file.append(np.array([NOBODY if kept.name == "domain" else 0]))  # place 0 is padding


def _sorted(block: Block, domains: int, place_type: np.dtype) -> dict[str, np.ndarray]:
    """A block's columns by file; ``start`` and ``offsets`` count from the block's own first event and value."""
    if block.time is not None and not ascending(block.time):
        order = order_of(block.time)
        block = Block(**{name: values.take(order) for name, values in block.columns().items()})
    low, pair = _pairs(block, domains)
    by_pair = order_of(pair)
    columns = {name: values.take(by_pair) for name, values in block.columns().items() if name not in ("user", "domain")}
    pair, item, use = pair.take(by_pair), columns["item"], columns.pop("use")
    kept = _for(REMEMBERED, use)
    if block.time is None:  # without a time a history is a set: one event per user, domain and item, the last one stored
        kept = kept[_last_of_each(pair.take(kept), item.take(kept))]
    place = np.full(len(pair), -1, np.int32)  # of each event in the histories
    place[by_pair.take(kept)] = np.arange(len(kept), dtype=np.int32)
    by_time = place.take(order_of(block.user))
    by_time = by_time.take(np.flatnonzero(by_time >= 0))
    seen, trained = _for(SEEN, use), pair.take(_for(TRAINED, use))
    segments, first = Segments.build(pair.take(seen), item.take(seen)), starts(trained)
    history = {name: values.take(kept) for name, values in columns.items()}
    pair = pair.take(kept)
    start = starts(pair)
    history |= {"pair": pair[start] + low, "start": start}
    types = {"event": place_type, "domain": block.domain.dtype, "run": place_type}
    history |= {name: values.astype(types[name], copy=False) for name, values in _merged(by_time, pair.take(by_time), domains).items()}
    return {f"history/{name}": values for name, values in history.items()} | {
        "seen/keys": segments.keys + low,
        "seen/offsets": segments.offsets[:-1],
        "seen/values": segments.values,
        "counts/key": trained[first] + low,
        "counts/count": np.diff(first, append=len(trained)),
    }


def _pairs(block: Block, domains: int) -> tuple[np.int64, np.ndarray]:
    """User and domain in one number: the least that the block's users may have, of 64 bits, and (n,) how much more each event has."""
    low = int(block.user.min(initial=np.iinfo(block.user.dtype).max))
    most = (int(block.user.max(initial=low)) - low + 1) * domains
    return np.int64(low * domains), (block.user - low).astype(np.int32 if most < 2**31 else np.int64, copy=False) * domains + block.domain


def _merged(place: np.ndarray, pair: np.ndarray, domains: int) -> dict[str, np.ndarray]:
    """The columns in order of time over all domains.

    Args:
        place: (n,) places of the events in the order by user, domain and time.
        pair: (n,) theirs, user and domain in one.
        domains: number of domains.
    """
    user = pair // domains
    begin, run = _since(starts(user), len(place)), _since(starts(pair), len(place))
    at = np.arange(1, len(place) + 1, dtype=np.int32)
    return {"event": place - begin, "domain": pair - user * domains, "run": at - run}


def _for(what: int, use: np.ndarray) -> np.ndarray:
    """Ascending places of the events that are for something."""
    return np.flatnonzero((use & what) != 0)  # numbers instead of truths would take several times as long


def _since(new: np.ndarray, size: int) -> np.ndarray:
    """(size,) the last of some ascending places, the first of which is 0, that is not behind a place."""
    return np.repeat(new.astype(np.int32), np.diff(new, append=size))


def _last_of_each(pair: np.ndarray, item: np.ndarray) -> np.ndarray:
    """Ascending positions of the last event of each (pair, item)."""
    order = order_of(pair, item)  # stable: equal ones stay in stored order
    first = starts(pair[order], item[order])
    return np.sort(order[np.append(first[1:], len(order)) - 1] if len(order) else order)
