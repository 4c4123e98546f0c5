"""``ahead``: work done in background threads, in order, a little before it is asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from typing import Any, TypeVar

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


def relay(make: Callable[[S], T], given: Iterable[S], place: Callable[[T], Sequence[Callable[[], None]]], threads: int) -> None:
    """Work whose middle has to be done in order.

    Args:
        make: runs in threads.
        given: what with.
        place: runs in the caller's thread, in order; gives what is left to do, always as many things.  Each of them has one more
            thread of its own, so that threads that write to the same files need not wait for each other.
        threads: how many of ``make`` run at once.
    """
    with ExitStack() as stack:
        made, waiting = stack.enter_context(closing(ahead(make, given, threads, threads))), deque[Future[None]]()
        last = list[ThreadPoolExecutor]()
        for left in map(place, made):
            last = last or [stack.enter_context(ThreadPoolExecutor(1, "isthmus-last")) for _ in left]
            waiting.extend(pool.submit(do) for pool, do in zip(last, left, strict=True))
            while len(waiting) > threads * len(last):
                waiting.popleft().result()
        for one in waiting:
            one.result()
