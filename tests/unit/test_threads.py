"""A thread of its own number of torch's threads, and none of the others' changed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch

from isthmus.threads import compute_alone


@pytest.fixture(autouse=True)
def three() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def elsewhere(work: Callable[[], int]) -> int:
    """What a new thread finds."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()


def test_one_thread_computes_alone_and_later_ones_do_not() -> None:
    with ThreadPoolExecutor(1) as early, ThreadPoolExecutor(1) as pool:
        early.submit(torch.set_num_threads, 2).result()  # a number of its own, and that of later threads
        pool.submit(compute_alone).result()
        pool.submit(lambda: torch.ones(300, 300) @ torch.ones(300, 300)).result()
        assert pool.submit(torch.get_num_threads).result() == 1
        assert early.submit(torch.get_num_threads).result() == 2
        assert torch.get_num_threads() == 3
        assert elsewhere(torch.get_num_threads) == 2


def test_many_at_once_leave_the_number_of_others() -> None:
    met = Barrier(16)

    def begin() -> int:
        met.wait()
        compute_alone()
        return torch.get_num_threads()

    for _ in range(20):
        with ThreadPoolExecutor(16) as pool:
            assert [begun.result() for begun in [pool.submit(begin) for _ in range(16)]] == [1] * 16
        assert elsewhere(torch.get_num_threads) == 3
