"""What ``test_cluster`` runs in a process of its own: one Ray on this machine, asked for what ``isthmus.cluster`` does with jobs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from isthmus.cluster import Share, joined, spread
from isthmus.errors import FitError, IsthmusError
from isthmus.how import How


def square(job: tuple[Path, int]) -> int:
    """A job; the thirteenth fails, and the seventh's process dies the first time."""
    folder, number = job
    if number == 13:
        raise FitError("thirteen came", "another number", "leave it out")
    if number == 7 and not (folder / "died").exists():
        (folder / "died").touch()
        os.kill(os.getpid(), 9)
    return number * number


def told(error: IsthmusError) -> list[str]:
    return [type(error).__name__, *str(error).splitlines()]


def gpus(folder: Path) -> dict[str, Any]:
    """On a Ray that was there before, and that says it has a GPU."""
    import ray

    ray.init(num_cpus=4, num_gpus=1, logging_level="error", log_to_driver=False, include_dashboard=False)
    with joined(folder):
        found: dict[str, Any] = {device: Share.of(How(device=device)).gpus for device in ("auto", "cuda", "cpu")}
        found["told"] = Share.of(How(threads=2), 0.5).gpus
        Share(1, 0.5).check(2)
        try:
            Share(1, 0.5).check(3)
        except IsthmusError as error:
            found["three"] = told(error)
        found["seen"] = sorted(result for _, result in spread(visible, [1, 2], lambda _: Share(1, 0.5)))
    found["left"] = ray.is_initialized()
    return found


def visible(_: int) -> str:
    """The GPUs that a job sees."""
    return os.environ["CUDA_VISIBLE_DEVICES"]


def jobs(folder: Path) -> dict[str, Any]:
    """On a Ray that begins here."""
    found: dict[str, Any] = {"said": []}
    one = lambda _: Share()  # noqa: E731
    with joined(folder):
        found["usage"] = os.environ["RAY_USAGE_STATS_ENABLED"]
        found["share"] = [Share.of(How(threads=threads)).cpus for threads in (None, 2)]
        found["squares"] = sorted((number, result) for (_, number), result in spread(square, [(folder, n) for n in (3, 5, 7)], one))
        for name, attempt in {
            "failed": lambda: list(spread(square, [(folder, 13), (folder, 2)], one, found["said"].append)),
            "large": lambda: list(spread(square, [(folder, 2)], lambda _: Share(cpus=1000))),
            "many": lambda: Share().check(1000),
        }.items():
            try:
                attempt()
            except IsthmusError as error:
                found[name] = told(error)
        own = os.open(folder, os.O_RDONLY)  # a path that means something to this process alone
        os.dup2(own, 987)
        try:
            with joined(Path("/proc/self/fd/987/runs")):
                pass
        except IsthmusError as error:
            found["unseen"] = told(error)
    return found


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    (folder / "found.json").write_text(json.dumps({"jobs": jobs, "gpus": gpus}[sys.argv[1]](folder)))
