"""How many threads torch computes with, where each thread of the process has a number of its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Lock

import torch

_ONE_AT_A_TIME = Lock()


def compute_alone() -> None:
    """Makes torch compute with one thread wherever this thread asks it to; other threads keep their numbers.

    Setting a thread's number also sets the one that threads take at their first question, those begun before included.  So this
    thread asks first, and one that ends right after sets back what it was told.
    """
    with _ONE_AT_A_TIME:
        others = torch.get_num_threads()
        torch.set_num_threads(1)
        with ThreadPoolExecutor(1) as last:
            last.submit(torch.set_num_threads, others).result()
