"""Blocks that were freed are there for the next step: fewer page faults, and the user's own settings hold."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import resource, torch
torch.set_num_threads(1)
from isthmus.allocator import keep_blocks
if {keep}:
    print(keep_blocks(), keep_blocks(), end=" ")
x = torch.ones(1 << 20)
for _ in range(3):
    y = (x + 1) * 2
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(50):
    y = (x + 1) * 2
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(keep: bool, **environment: str) -> list[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    program = [sys.executable, "-c", PROGRAM.format(keep=keep)]
    return subprocess.run(program, capture_output=True, text=True, check=True, env=own | environment).stdout.split()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone can be told")
def test_blocks_are_kept() -> None:
    plain, (done, again, faults) = run(False), run(True)
    if done == "False":
        pytest.skip("no glibc")
    assert again == "True"
    assert 4 * int(faults) < int(plain[0]), "4 MiB are 1,024 pages; 100 blocks of them were asked for"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone can be told")
def test_what_the_user_has_set_holds() -> None:
    assert run(True, MALLOC_TRIM_THRESHOLD_="1000000")[0] == "False"
