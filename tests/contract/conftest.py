"""Data that every model is tried on, made once."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from worlds import Known, known_world, rich_events

from isthmus.data import split
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Models this small are slower on several threads, and several test workers share the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Three domains of very different size; every kind of field; users and items that training never saw."""
    return encode(events := rich_events(), split.global_time(events), tmp_path_factory.mktemp("rich") / "data")


@pytest.fixture(scope="session")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, Dataset]:
    """Two domains, and three that extend them."""
    folder = tmp_path_factory.mktemp("growth")
    few, every = rich_events(("large", "medium")), rich_events()
    base = encode(few, split.global_time(few), folder / "base")
    return base, encode(every, split.global_time(every), folder / "every", base=base)


@pytest.fixture(scope="session")
def known(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Known]:
    """Makes the world of a task, once."""
    worlds: dict[str, Known] = {}

    def make(task: str) -> Known:
        if task not in worlds:
            worlds[task] = known_world(task, tmp_path_factory.mktemp(task) / "data")
        return worlds[task]

    return make
