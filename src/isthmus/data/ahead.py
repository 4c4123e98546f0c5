"""``ahead``: work done in background threads, in order, a little before it is asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import Any, TypeVar

R = TypeVar("R")
S = TypeVar("S")
T = TypeVar("T")


def ahead(
    make: Callable[[S], T], given: Iterable[S], prefetch: int, threads: int = 1, begin: Callable[[], None] | None = None
) -> Generator[T, None, None]:
    """``make`` of each thing given in turn, up to ``prefetch`` of them made ahead.

    Args:
        make: what to do; numpy's and torch's larger functions let other threads run.
        given: what to do it with; asked for in the caller's thread.
        prefetch: 0: nothing happens before it is asked for, and no thread is started.
        threads: how many are worked on at once.
        begin: what each of the threads does first.

    Returns:
        A generator; closing it ends the threads.  What goes wrong there is raised here.
    """
    if not prefetch:
        yield from map(make, given)
        return
    pool, waiting = ThreadPoolExecutor(threads, "isthmus-ahead", begin), deque[Any]()
    try:
        for one in given:
            waiting.append(pool.submit(make, one))
            if len(waiting) > prefetch:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def relay(make: Callable[[R], S], given: Iterable[R], place: Callable[[S], T], finish: Callable[[T], None], threads: int) -> None:
    """Work whose middle has to be done in order: ``make`` runs in threads, ``place`` in the caller's, and ``finish`` in one more.

    Two threads that write to the same files wait for each other.
    """
    with closing(ahead(make, given, threads, threads)) as made, closing(ahead(finish, map(place, made), threads)) as finished:
        for _ in finished:
            pass
