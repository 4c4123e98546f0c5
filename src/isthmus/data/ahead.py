"""``ahead``: work done in background threads, in order, a little before it is asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


def ahead(make: Callable[[int], T], numbers: Iterable[int], prefetch: int, threads: int = 1) -> Generator[T, None, None]:
    """``make`` of each number in turn, up to ``prefetch`` of them made ahead.

    Args:
        make: what to do; numpy's and torch's larger functions let other threads run.
        numbers: in order.
        prefetch: 0: nothing happens before it is asked for, and no thread is started.
        threads: how many numbers are worked on at once.

    Returns:
        A generator; closing it ends the threads.  What goes wrong there is raised here.
    """
    if not prefetch:
        yield from map(make, numbers)
        return
    pool, waiting = ThreadPoolExecutor(threads, "isthmus-ahead"), deque[Any]()
    try:
        for number in numbers:
            waiting.append(pool.submit(make, number))
            if len(waiting) > prefetch:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
