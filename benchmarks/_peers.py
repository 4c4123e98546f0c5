"""What benchmarks share when they train another library: getting it, and feeding it some batches at a time."""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

PEERS = Path(__file__).parent / ".peers"
RECHUB = ("torch-rechub==0.9.0", "tqdm")


class Part:
    """The next batches of a loader, epoch after epoch, as a loader of their own."""

    def __init__(self, stream: Iterator[Any], steps: int) -> None:
        self.stream, self.steps = stream, steps

    def __iter__(self) -> Iterator[Any]:
        return itertools.islice(self.stream, self.steps)

    def __len__(self) -> int:
        return self.steps


def endless(loader: Iterable[Any]) -> Iterator[Any]:
    """A loader's epochs, one after the other."""
    while True:
        yield from loader


def install(folder: str, packages: tuple[str, ...]) -> None:
    """Puts a peer into ``benchmarks/.peers``, if it is not there.

    Raises:
        ImportError: it cannot be installed.
    """
    if not (PEERS / folder).exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(PEERS), *packages]
        done = subprocess.run(command, capture_output=True, check=False, text=True)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "ERROR" in line]
            raise ImportError((lines or ["pip failed"])[0])
    if str(PEERS) not in sys.path:
        sys.path.insert(0, str(PEERS))
