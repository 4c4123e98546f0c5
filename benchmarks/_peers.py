"""What benchmarks share when they train another library: getting it, feeding it some batches at a time, timing it in rounds."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from torch import Tensor

PEERS = Path(__file__).parent / ".peers"
RECHUB = ("torch-rechub==0.9.0", "tqdm")
LIGHTNING = ("pytorch-lightning==2.5.2", "torchmetrics==1.9.0", "lightning-utilities==0.15.3", "pyyaml", "tqdm")
RECBOLE = (
    "recbole==1.2.1",
    *("pandas==2.3.3", "pytz", "tqdm", "colorlog==4.7.2", "colorama==0.4.4", "pyyaml", "thop==0.1.1.post2209072238"),
    *("tabulate", "texttable==1.7.0", "plotly", "psutil", "tensorboard", "protobuf", "absl-py"),
)
RECTOOLS = ("rectools==0.18.0", "pm-implicit==0.7.3", "typeguard==4.6.0", "fastrlock==0.8.4", "attrs", "pandas==2.3.3", "pytz", *LIGHTNING)


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


def install(folder: str, packages: tuple[str, ...], home: Path = PEERS) -> None:
    """Puts a peer into ``benchmarks/.peers``, if it is not there.

    Args:
        folder: of the peer's package.
        packages: the peer and what it needs beyond the environment.
        home: where they go; one of its own for a peer whose packages must not stand before the environment's for others.

    Raises:
        ImportError: it cannot be installed.
    """
    if not (home / folder).exists():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(home), *packages]
        done = subprocess.run(command, capture_output=True, check=False, text=True)
        if done.returncode:
            lines = [line for line in done.stderr.splitlines() if "ERROR" in line]
            raise ImportError((lines or ["pip failed"])[0])
    if str(home) not in sys.path:
        sys.path.insert(0, str(home))


def clone(folder: str, source: str, commit: str) -> None:
    """Puts a peer that has no package into ``benchmarks/.peers``, if it is not there.

    Args:
        folder: of the peer.
        source: its repository; another copy of it may be named by an environment variable, PEER_ and the folder's name.
        commit: the one to take.

    Raises:
        ImportError: it cannot be had.
    """
    home = PEERS / f"{folder}_repository"
    if not home.exists():
        source = os.environ.get(f"PEER_{folder.upper()}", source)
        partly = home.with_suffix(".partly")
        shutil.rmtree(partly, ignore_errors=True)
        take = ["git", "-C", str(partly), "checkout", "--quiet", commit, "--", folder]  # the package alone, without its example data
        for command in (["git", "clone", "--quiet", "--no-checkout", source, str(partly)], take):
            done = subprocess.run(command, capture_output=True, check=False, text=True)
            if done.returncode:
                raise ImportError((done.stderr.strip() or "git failed").splitlines()[-1])
        partly.rename(home)
    sys.path.insert(0, str(home))


def memory(kind: str) -> float:
    """This process's memory in MiB; NaN where the system does not say.

    Args:
        kind: ``VmHWM``, the most it ever held, mapped files included, or ``RssAnon``, what it holds now that is no file's.
    """
    try:  # not getrusage: a process inherits from the one that started it how large that one was
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return float("nan")
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith(kind)), float("nan"))


class Clock:
    """A trainer's side of a benchmark in rounds, in a process of its own; ``Worker`` is the other side.

    A trainer that trains without end calls it before each batch.  It waits there between rounds: what is between two calls is a whole
    step, loader included.  In come the steps of a round, a line each; out comes a line of JSON for the warm-up, and for each round.

    Args:
        warm: steps before the first round.
    """

    def __init__(self, warm: int = 3) -> None:
        self.out, sys.stdout = sys.stdout, sys.stderr  # whatever peers print
        self._start(warm)

    def __call__(self, sequences: int, targets: int) -> None:
        """Before a batch.

        Raises:
            SystemExit: there is no further round.
        """
        if not self.left:
            seconds = time.perf_counter() - self.begin
            loss = sum(float(loss) for loss in self.losses) / max(len(self.losses), 1)
            told = {"rate": self.sequences / seconds, "targets": self.targets / self.sequences, "loss": loss}
            told |= {"memory": memory("VmHWM"), "own": memory("RssAnon")}
            print(json.dumps(told), file=self.out, flush=True)
            self._start(int(sys.stdin.readline() or sys.exit()))
        self.left -= 1
        self.sequences += sequences
        self.targets += targets

    def learnt(self, loss: Tensor) -> None:
        """After a batch: its loss, which is read when the round is over."""
        self.losses.append(loss.detach())

    def _start(self, steps: int) -> None:
        self.left, self.sequences, self.targets = steps, 0, 0
        self.losses: list[Tensor] = []
        self.begin = time.perf_counter()


class Worker:
    """A trainer's process, as its parent sees it.

    Args:
        command: of the process, which makes a ``Clock``; to say why it cannot train, it prints a line and ends.
        errors: the file that takes what it says besides.

    Attributes:
        missing: why it cannot be had; "" when it can.
        rounds: what the clock told of the warm-up, and of each round: sequences per second, targets per sequence, mean loss, and the
            process's largest memory so far and its own now in MiB (``memory``).
    """

    def __init__(self, command: list[str], errors: Path) -> None:
        self.errors, self.rounds = errors, list[dict[str, float]]()
        with errors.open("w") as file:
            self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=file, text=True)
        said = self._read()
        self.missing = "" if said.startswith("{") else said
        if not self.missing:
            self.rounds.append(json.loads(said))

    def run(self, steps: int) -> None:
        """Another round.

        Raises:
            RuntimeError: the process ended in its midst.
        """
        assert self.process.stdin is not None
        print(steps, file=self.process.stdin, flush=True)
        if not (said := self._read()).startswith("{"):
            raise RuntimeError(said)
        self.rounds.append(json.loads(said))

    def end(self) -> None:
        """Lets the process go."""
        self.process.communicate()

    def _read(self) -> str:
        """The next line; of a process that ended without one, what it said last besides."""
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip() or (self.errors.read_text().strip() or "it ended").splitlines()[-1]
