"""Splits: which events train, validate and test, and the candidate lists that come with the data.

Rules: ``global_time`` (the default for timed data), ``leave_last``, ``cold_users``, ``given``, ``random``; and ``last_day``, in a file of
its own.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import polars as pl

from isthmus import arrow
from isthmus.data.candidates import Candidates
from isthmus.data.chunks import ALL, chunks, count, tally
from isthmus.data.moments import moment_at
from isthmus.errors import ConfigError, SourceError, SplitError, nearest
from isthmus.sorting import order_of, starts
from isthmus.storage import read_json, whole_folder, write_json

if TYPE_CHECKING:
    from isthmus.data.events import Events

TRAIN, VALID, TEST, UNUSED, KNOWN = range(5)
PARTS = ("train", "valid", "test", "unused", "known")
COLD_USERS, LAST_DAY = "cold_users", "last_day"
BLOCK = 1 << 22  # events that ``leave_last`` sorts at once


@dataclass(frozen=True)
class Split:
    """A part for every event.

    Attributes:
        part: (N,) uint8: ``TRAIN``, ``VALID``, ``TEST``, ``UNUSED``, or ``KNOWN``: in the histories of later rows of timed
            data, and nowhere else.
        rule: which rule made it.
        params: what the rule was given and what it found (thresholds), plus ``events``, a digest of the
            events it was made for.
        candidates: given lists, under ``valid`` and ``test``.
    """

    part: np.ndarray
    rule: str
    params: dict[str, Any] = field(default_factory=dict)
    candidates: dict[str, Candidates] = field(default_factory=dict)

    def __post_init__(self) -> None:
        part = np.asarray(self.part)
        if part.ndim != 1 or (len(part) and (part.min() < TRAIN or part.max() > KNOWN)):
            raise SplitError("parts that are no numbers from 0 to 4", f"(N,) of {dict(enumerate(PARTS))}", "use the rule `given` for names")
        if foreign := sorted(set(self.candidates) - {"valid", "test"}):
            raise SplitError(f"candidate lists for {foreign}", "'valid' and 'test'", nearest(foreign[0], ("valid", "test")))
        object.__setattr__(self, "part", part.astype(np.uint8))

    def __len__(self) -> int:
        return len(self.part)

    @property
    def hash(self) -> str:
        """16 hex digits that change with any change of the parts, the rule, its parameters or the lists."""
        digest = hashlib.sha256(np.ascontiguousarray(self.part).data)
        digest.update(json.dumps([self.rule, self.params], sort_keys=True).encode())
        for name in sorted(self.candidates):
            lists = self.candidates[name]
            digest.update(json.dumps([name, lists.name, lists.names, len(lists), len(lists.item)], sort_keys=True).encode())
            for column in fields(lists)[:5]:
                digest.update(getattr(lists, column.name).tobytes())
        return digest.hexdigest()[:16]

    def in_history(self, rows: slice = ALL) -> np.ndarray:
        """(n,) bool, by default of all events: may it enter the histories of later rows?

        All but the unused ones; under ``cold_users`` and ``last_day`` training events and those only known, because the target
        history of the held-out users is what must not be known.
        """
        part = self.part[rows]
        return (part == TRAIN) | (part == KNOWN) if self.rule in (COLD_USERS, LAST_DAY) else part != UNUSED

    def merged(self) -> Split:
        """The split of the final fit: validation events become training events."""
        part = np.where(self.part == VALID, TRAIN, self.part).astype(np.uint8)
        return replace(self, part=part, candidates={k: v for k, v in self.candidates.items() if k != "valid"})

    def check(self, events: Events) -> None:
        """Makes sure that this split was made for these events.

        Raises:
            SplitError: another number of events, events after the split's end, or other events.
        """
        do = "make the split from these events"
        if len(self) != len(events.user):
            raise SplitError(f"a split of {len(self):,} events", f"{len(events.user):,} events", do)
        end = self.params.get("end")
        if end is not None and events.time is not None and events.time.max() > end:
            raise SplitError(f"an event at time {events.time.max()}, in the future of the split", f"times up to {end}", do)
        if self.params.get("events", digest := events.digest()) != digest:
            raise SplitError(f"a split made for other events ({self.params['events']})", f"events with digest {digest}", do)

    def summary(self, events: Events) -> pl.DataFrame:
        """Rows, users, items, and first and last time, by domain and part.

        Returns:
            Columns ``domain``, ``part``, ``rows``, ``users``, ``items`` and, for timed events, ``first``, ``last``.
        """
        self.check(events)
        columns = {"domain": events.domain, "part": self.part, "user": events.user, "item": events.item}
        what = [pl.len().alias("rows"), pl.col("user").n_unique().alias("users"), pl.col("item").n_unique().alias("items")]
        if events.time is not None:
            columns["time"] = events.time
            what += [pl.col("time").min().alias("first"), pl.col("time").max().alias("last")]
        table = pl.DataFrame(columns).group_by("domain", "part").agg(what).sort("domain", "part")
        names = {"domain": events.schema.domain_names, "part": PARTS}
        return table.with_columns(pl.Series(column, [known[i] for i in table[column]], pl.String) for column, known in names.items())

    def save(self, folder: str | Path, *, overwrite: bool = False) -> None:
        """Writes the split into a folder, whole or not at all.

        Raises:
            StorageError: the folder exists already, or cannot be written.
        """
        with whole_folder(folder, overwrite=overwrite) as temporary:
            arrow.write(temporary / "part.arrow", {"part": self.part})
            for name, lists in self.candidates.items():
                lists.save(temporary / name)
            about = {"rule": self.rule, "params": self.params, "candidates": sorted(self.candidates), "hash": self.hash}
            write_json(temporary / "split.json", about)

    @classmethod
    def load(cls, folder: str | Path) -> Split:
        """Reads what ``save`` wrote.

        Raises:
            SourceError: a file is missing, damaged or changed.
        """
        folder = Path(folder)
        about = read_json(folder / "split.json")
        try:
            lists = {name: Candidates.load(folder / name) for name in about["candidates"]}
            split = cls(arrow.read(folder / "part.arrow")["part"], about["rule"], about["params"], lists)
            unchanged = split.hash == about["hash"]
        except (KeyError, TypeError, SplitError) as error:
            raise SourceError(f"{folder} holds no split ({error})", "a split that Isthmus wrote", "make the split again") from error
        if not unchanged:
            raise SourceError(f"{folder} has been changed: its hash is {split.hash}", f"hash {about['hash']}", "make the split again")
        return split


def default(events: Events) -> Split:
    """``global_time`` when the events have times, else ``leave_last``."""
    return leave_last(events) if events.time is None else global_time(events)


def global_time(
    events: Events, valid: float = 0.1, test: float = 0.1, end: int | None = None, of: Literal["events", "time"] = "events"
) -> Split:
    """Two moments: train before the first, test from the second on, validation between.

    Events of one moment are never divided: each threshold is put between two moments, where the parts come
    nearest to the shares asked for.

    Args:
        events: timed events.
        valid, test: shares; 0 for no such part.
        end: the last moment the data may hold; None: the last event's.
        of: what they are shares of: ``events``, or ``time``, from the first event to the last.

    Raises:
        ConfigError: ``of`` is neither.
        SplitError: no times, events after ``end``, a part asked for comes out empty, or a domain has no
            training events.
    """
    if events.time is None:
        raise SplitError("events without times", "timed events", "declare the time column, or use leave_last")
    _check_shares(valid, test)
    last = int(events.time.max())
    if end is not None and last > end:
        raise SplitError(f"an event at time {last}, in the future of the split", f"times up to {end}", "drop them, or move the end")
    if of not in ("events", "time"):
        raise ConfigError(f"of={of!r}", "'events' or 'time'", nearest(of, ("events", "time")))
    with ThreadPoolExecutor(1, "isthmus-digest") as beside:
        beside.submit(events.digest)  # takes as long as all else
        first_test = moment_at(events.time, 1 - test, of)
        first_valid = moment_at(events.time, 1 - test - valid, of) if valid else first_test
        part = np.zeros(len(events.time), np.uint8)
        for moment in (first_valid, first_test):
            if moment is not None:
                part += events.time >= moment  # from TRAIN to VALID, and from there to TEST
    thresholds = {"valid_from": first_valid, "test_from": first_test}
    params = {"valid": valid, "test": test, "of": of, **thresholds, "end": last if end is None else int(end)}
    return made(events, part, "global_time", params, {"valid": valid > 0, "test": test > 0})


def leave_last(events: Events, min_events: int = 3, seed: int = 0, across: bool = False) -> Split:
    """For each user in each domain: the last event is test, the one before it validation, the rest train.

    With ``across``: for each user, the last of her events in all domains is test, whatever its domain, and the one before it validation.

    Events at the same moment count in stored order.  Without times the two are drawn at random (and
    ``params`` says so).  All events count, whatever their label.

    Args:
        events: the events.
        min_events: a user with fewer events in a domain (``across``: in all of them) keeps all of them there for training; at least 3.
        seed: for events without times.
        across: one sequence per user, not one per user and domain.

    Raises:
        SplitError: no user has enough events, or ``min_events`` is below 3.
    """
    if min_events < 3:
        raise SplitError(f"min_events={min_events}", "at least 3: one event each for train, valid and test", "raise it")
    # shares of 1 have the order of their bits
    moment = np.random.default_rng(seed).random(len(events)).view(np.int64) if events.time is None else events.time
    part = np.full(len(events), TRAIN, np.uint8)
    for rows in _user_by_user(events):
        user = events.user[rows].astype(np.int64)
        pair = user if across else user * len(events.schema.domains) + events.domain[rows]
        order = order_of(pair, moment[rows])
        last = np.flatnonzero(np.diff(pair[order], append=-1))
        enough = np.diff(last, prepend=-1) >= min_events
        part[rows[order[last[enough]]]] = TEST
        part[rows[order[last[enough] - 1]]] = VALID
    chosen = {"order": "time"} if events.time is not None else {"order": "random, for want of times", "seed": seed}
    return made(events, part, "leave_last", {"min_events": min_events, **({"across": True} if across else {}), **chosen})


def _user_by_user(events: Events) -> Iterator[np.ndarray]:
    """Ascending rows (n,), all of some users' each time: sorting them takes no memory that grows with the events."""
    number = count(events.user, len(events.user_ids))
    block = (np.cumsum(number) - number) // BLOCK
    for first, end in pairwise([*starts(block).tolist(), len(block)]):
        yield np.concatenate(
            [rows.start + np.flatnonzero((events.user[rows] >= first) & (events.user[rows] < end)) for rows in chunks(len(events))]
        )


def cold_users(
    events: Events,
    target: str,
    share: float,
    seed: int = 0,
    valid: float = 0.1,
    min_source: int = 1,
    max_source: int | None = None,
    after: float | None = None,
) -> Split:
    """Users of other domains come to ``target`` for the first time.

    The overlapping users have events in ``target`` and from ``min_source`` to ``max_source`` events in other domains.
    A random ``share`` of them loses its events in ``target``: those are the test part.  Of the other overlapping users
    a share ``valid`` likewise loses its own to validation.  Everything else is train, whatever its time, as in EMCDR
    (Man et al., IJCAI 2017) and PTUPCDR (Zhu et al., WSDM 2022); and held-out events enter nobody's history.

    With ``after`` nothing is trained on that is not known at the moment predicted: the target's events are cut at a
    moment, where those before it come nearest to this share.  Of the test users' events in ``target`` those from the
    moment on are the test part.  Before the moment everything else is as above; from it on nothing trains or validates,
    and the test users' events in other domains are known: a test row's history holds those before its own time.  Source
    events are then counted before the moment.

    Args:
        events: the events; timed for ``after``.
        target: name of the domain.
        share: of the overlapping users, between 0 and 1.
        seed: draws the users.
        valid: of the overlapping users that are not test users; 0 for no validation part.
        min_source, max_source: least and most events in the other domains together; None: no limit.
        after: share of the target's events before the test rows, between 0 and 1; None: time plays no part.

    Raises:
        SplitError: too few overlapping users for a part asked for, no training events left in a domain, numbers out
            of range, or ``after`` without times.
        ConfigError: no such domain.
    """
    index = events.schema.domain_index(target)
    if not 0 < share < 1 or not 0 <= valid < 1 or (after is not None and not 0 < after < 1):
        raise SplitError(f"share={share}, valid={valid}, after={after}", "shares between 0 and 1", "correct them")
    if min_source < 1 or (max_source is not None and max_source < min_source):
        came = f"min_source={min_source}, max_source={max_source}"
        raise SplitError(came, "at least 1 source event, and a most that is not below the least", "correct them")
    own = events.domain == index
    moment, late = _moment(events, own, after)
    users = len(events.user_ids)
    source = np.bincount(events.user[~own & ~late], minlength=users)
    enough = (source >= min_source) & (source <= (len(own) if max_source is None else max_source))
    overlapping = np.flatnonzero(enough & (np.bincount(events.user[own], minlength=users) > 0))
    drawn = np.random.default_rng(seed).permutation(overlapping)
    tests = round(share * len(drawn))
    valids = round(valid * (len(drawn) - tests))
    part_of_user = np.full(users, TRAIN, np.uint8)
    part_of_user[drawn[:tests]] = TEST
    part_of_user[drawn[tests : tests + valids]] = VALID
    part = np.where(own, part_of_user[events.user], TRAIN)
    if after is not None:
        cold = part_of_user[events.user] == TEST
        part[own & cold & ~late] = UNUSED
        part[late] = np.where(cold, np.where(own, TEST, KNOWN), UNUSED)[late]
    params = {"target": target, "share": share, "seed": seed, "valid": valid, "min_source": min_source, "max_source": max_source}
    params |= {"after": after, "test_from": moment, "overlapping_users": len(drawn)}
    return made(events, part, COLD_USERS, params, {"valid": valid > 0, "test": True})


def _moment(events: Events, own: np.ndarray, after: float | None) -> tuple[int | None, np.ndarray]:
    """The moment with a share ``after`` of some events before it, and which of all events are not before it."""
    if after is None:
        return None, np.zeros(len(own), bool)
    if events.time is None:
        raise SplitError(f"after={after} for events without times", "timed events", "leave `after` out")
    moments, counts = np.unique(events.time[own], return_counts=True)
    if not len(moments):
        raise SplitError(f"rule {COLD_USERS!r} for a target without events", "events in every part", "choose another target")
    before = np.cumsum(counts) - counts
    moment = int(moments[np.abs(before - after * counts.sum()).argmin()])
    return moment, events.time >= moment


def given(events: Events, part: Sequence[Any] | np.ndarray | pl.Series, candidates: dict[str, Candidates] | None = None) -> Split:
    """The split that comes with the data.

    Args:
        events: the events.
        part: (N,) names ``train``, ``valid``, ``test``, ``unused``, ``known``, or their numbers 0 to 4.
        candidates: given lists, under ``valid`` and ``test``.

    Raises:
        SplitError: another length, an unknown name, or no training events in a domain.
    """
    column = pl.Series("part", part)
    if column.dtype.is_integer():
        codes = column
    else:
        names = column.cast(pl.String)
        unknown = names.filter(~names.is_in(PARTS)).unique(maintain_order=True)
        if len(unknown):
            raise SplitError(f"part {unknown[0]!r}", f"one of {PARTS}", nearest(str(unknown[0]), PARTS))
        codes = names.replace_strict(dict(zip(PARTS, range(len(PARTS)), strict=True)), return_dtype=pl.UInt8)
    if codes.null_count() or len(codes) != len(events.user):
        came = f"{len(codes):,} parts, {codes.null_count():,} of them null"
        raise SplitError(came, f"{len(events.user):,}, none null", "give every event a part")
    return made(events, codes.to_numpy(), "given", {}, {"valid": False, "test": False}, candidates)


def random(events: Events, valid: float = 0.1, test: float = 0.1, seed: int = 0) -> Split:
    """Events drawn at random.

    With times this lets training events come after the test events they help to predict, and says so in a
    ``UserWarning``.

    Args:
        events: the events.
        valid, test: shares of all events; 0 for no such part.
        seed: draws the events.

    Raises:
        SplitError: a part asked for comes out empty, or a domain has no training events.
    """
    _check_shares(valid, test)
    if events.time is not None:
        message = "a random split of timed events trains on the future of its test events; global_time does not"
        warnings.warn(message, UserWarning, stacklevel=2)
    total = len(events.user)
    order = np.random.default_rng(seed).permutation(total)
    tests, valids = round(test * total), round(valid * total)
    part = np.full(total, TRAIN, np.uint8)
    part[order[:tests]] = TEST
    part[order[tests : tests + valids]] = VALID
    return made(events, part, "random", {"valid": valid, "test": test, "seed": seed}, {"valid": valid > 0, "test": test > 0})


def made(
    events: Events,
    part: np.ndarray,
    rule: str,
    params: dict[str, Any],
    wanted: dict[str, bool] | None = None,
    candidates: dict[str, Candidates] | None = None,
) -> Split:
    """The split, checked: every part wanted (all, if not said) has events, every domain in use has training events."""
    split = Split(part, rule, {**params, "events": events.digest()}, candidates or {})
    empty = [PARTS[code] for code in (TRAIN, VALID, TEST) if (wanted or {}).get(PARTS[code], True) and not (split.part == code).any()]
    if empty:
        raise SplitError(f"rule {rule!r} leaves {empty} without events", "events in every part", "use larger shares or another rule")
    number = by_part(events, split)
    used = number.sum(0) - number[UNUSED]
    untrained = [name for name, n, m in zip(events.schema.domain_names, used, number[TRAIN], strict=True) if n and not m]
    if untrained:
        came = f"domains {untrained} have no training events"
        raise SplitError(came, "training events in every domain", "use another rule, or drop these domains")
    return split


def by_part(events: Events, split: Split) -> np.ndarray:
    """(parts, domains) int64 numbers of events."""
    domains = len(events.schema.domains)
    number = tally(lambda rows: split.part[rows] * np.int64(domains) + events.domain[rows], len(events), len(PARTS) * domains)
    return number.reshape(len(PARTS), domains)


def _check_shares(valid: float, test: float) -> None:
    if not (0 <= valid < 1 and 0 <= test < 1 and 0 < valid + test < 1):
        raise SplitError(f"valid={valid}, test={test}", "shares that leave events for training and for another part", "correct them")
