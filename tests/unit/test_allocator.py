"""Blocks that were freed are there for the next step: fewer page faults, and the user's own settings hold."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import ctypes, resource, sys
from isthmus.allocator import keep_blocks
if len(sys.argv) == 1:
    print(keep_blocks(), keep_blocks(), end=" ")
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes, c.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
c.memset.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
def step():  # six blocks of 16 MiB at once, as activations are
    blocks = [c.malloc(16 << 20) for _ in range(6)]
    for block in blocks:
        c.memset(block, 1, 16 << 20)
    for block in blocks:
        c.free(block)
for _ in range(3):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    step()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def run(*words: str, **environment: str) -> list[str]:
    own = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, check=True, env=own | environment
    ).stdout.split()


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone can be told")
def test_blocks_are_kept() -> None:
    done, again, faults = run()
    if done == "False":
        pytest.skip("no glibc")
    assert again == "True"
    (plain,) = run("as it is")
    assert int(faults) < 4096 < int(plain), "16 MiB are 4,096 pages; 60 blocks of them were asked for"


@pytest.mark.skipif(sys.platform != "linux", reason="glibc alone can be told")
def test_what_the_user_has_set_holds() -> None:
    assert run(MALLOC_TRIM_THRESHOLD_="1000000")[0] == "False"
