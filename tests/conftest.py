"""What all tests share."""

import os
import shutil
import tempfile
from collections.abc import Iterator

import pytest
import torch
from hypothesis import settings

settings.register_profile("untimed", deadline=None)  # a busy machine is no failure
settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that need public data are skipped, and say so, where there are none."""
    if not os.environ.get("ISTHMUS_DATA"):
        skip = pytest.mark.skip(reason="needs public data: set ISTHMUS_DATA to the folder that holds them")
        for item in items:
            if item.get_closest_marker("data"):
                item.add_marker(skip)


@pytest.fixture(autouse=True)
def drawn_alike() -> None:
    """What a test draws does not depend on which tests ran before it."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def ray_environment() -> Iterator[dict[str, str]]:
    """For processes that start Ray: nothing of it outlasts the tests, in /tmp or at home; its sockets want a short path."""
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")
    kept = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    yield {**kept, "RAY_TMPDIR": folder, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64, "OMP_NUM_THREADS": "1"}
    shutil.rmtree(folder, ignore_errors=True)
