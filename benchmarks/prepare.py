"""Rows per second and peak memory of preparing a large log: read_events, split, encode.

    python benchmarks/prepare.py                     # 20 million rows
    python benchmarks/prepare.py --rows 100000000    # needs 12 GB of disk

Prints rows/s, the peak resident memory, and the time relative to polars reading the same rows and writing them, as Arrow without
compression and as parquet, in turns: medians, and each round's ratio.
The exit code is 1 when 20 million rows or fewer take more than 2 GiB, or 100 million more than 3.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

USERS, ITEMS, DOMAINS = 1_000_000, 300_000, 3
CHUNK = 1_000_000
COPIES = ("copy", "copy_parquet")
LIMITS = {20_000_000: 2048, 100_000_000: 3072}  # up to so many rows: MiB of memory allowed
START, SPAN = 1_700_000_000, 90 * 86_400


def make_log(folder: Path, rows: int) -> None:
    """Writes the log: skewed users and items, clicks at 30%, times that ascend from file to file."""
    for number, begin in enumerate(range(0, rows, CHUNK)):
        rng = np.random.default_rng(number)
        n = min(CHUNK, rows - begin)
        now = START + SPAN * begin // rows
        frame = pl.DataFrame(
            {
                "uid": (rng.random(n) ** 2 * USERS).astype(np.int64),
                "iid": (rng.random(n) ** 2 * ITEMS).astype(np.int64),
                "market": rng.integers(0, DOMAINS, n),
                "click": (rng.random(n) < 0.3).astype(np.int8),
                "ts": np.sort(rng.integers(now, now + SPAN * n // rows + 1, n)),
            }
        )
        texts = (pl.format("user-{}", "uid"), pl.format("item-{}", "iid"), pl.format("market-{}", "market"))
        frame.with_columns(t.alias(name) for t, name in zip(texts, ("uid", "iid", "market"), strict=True)).write_parquet(
            folder / f"{number:04d}.parquet"
        )


def prepare(log: Path, out: Path, label: str | None = "click") -> None:
    """The library's own work; without the label every event is a positive and enters the histories."""
    from isthmus.data import split
    from isthmus.data.encode import encode
    from isthmus.data.events import read_events

    clock = time.perf_counter()

    def say(what: str) -> None:
        nonlocal clock
        print(f"  {what:<12} {time.perf_counter() - clock:6.1f} s   peak so far {peak_mib():6.0f} MiB", flush=True)
        clock = time.perf_counter()

    say("import")
    events = read_events(pl.scan_parquet(log / "*.parquet"), user="uid", item="iid", domain="market", label=label, time="ts")
    say("read_events")
    parts = split.global_time(events)
    say("split")
    encode(events, parts, out)
    say("encode")


def copy(log: Path, out: Path) -> None:
    """Polars reading and writing the same rows."""
    out.mkdir()
    pl.scan_parquet(log / "*.parquet").sink_ipc(out / "copy.arrow", compression="uncompressed", engine="streaming")


def copy_parquet(log: Path, out: Path) -> None:
    """The same, in the format that they came in."""
    out.mkdir()
    pl.scan_parquet(log / "*.parquet").sink_parquet(out / "copy.parquet", engine="streaming")


def peak_mib() -> float:
    """The largest resident memory of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def child(what: str, log: Path, out: Path) -> tuple[float, float, float]:
    """Runs one job in a fresh process: seconds, processor seconds, and peak memory in MiB."""
    result = subprocess.run([sys.executable, __file__, "--child", what, str(log), str(out)], stdout=subprocess.PIPE, text=True, check=True)
    *lines, last = result.stdout.strip().splitlines()
    print("\n".join(lines), flush=True)
    seconds, busy, peak = map(float, last.split())
    return seconds, busy, peak


def turn(what: str, folder: Path) -> tuple[float, float, float]:
    """``child``, in a folder that is gone again afterwards."""
    try:
        return child(what, folder / "log", folder / "out")
    finally:
        shutil.rmtree(folder / "out", ignore_errors=True)


def main() -> int:
    """Makes the log, prepares and copies it in turns, and prints what the jobs took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=min(LIMITS))
    parser.add_argument(
        "--rounds", type=int, default=3, help="of all jobs in turn: the first one to run finds the memory colder than all others"
    )
    parser.add_argument("--labels", choices=("clicks", "implicit"), default="implicit", help="implicit: every event is a positive")
    parser.add_argument("--folder", type=Path, default=None, help="where the temporary files go")
    parser.add_argument("--child", nargs=3, metavar=("JOB", "LOG", "OUT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        job, log, out = options.child
        begin, busy = time.perf_counter(), time.process_time()
        jobs = {"clicks": prepare, "implicit": partial(prepare, label=None), "copy": copy, "copy_parquet": copy_parquet}
        jobs[job](Path(log), Path(out))
        print(time.perf_counter() - begin, time.process_time() - busy, peak_mib())
        return 0
    with tempfile.TemporaryDirectory(prefix="isthmus-benchmark-", dir=options.folder) as name:
        folder = Path(name)
        (folder / "log").mkdir()
        make_log(folder / "log", options.rows)
        rounds = [[turn(what, folder) for what in (options.labels, *COPIES)] for _ in range(options.rounds)]
    (seconds, busy, _), *copies = np.median(np.array(rounds), axis=0).tolist()
    worst = max(one[0][2] for one in rounds)
    print(f"medians of {options.rounds} rounds; {options.rows:,} rows, {options.labels}:")
    print(f"Isthmus: {options.rows / seconds:,.0f} rows/s, peak {worst:,.0f} MiB")
    for n, (what, (copied, copy_busy, copy_peak)) in enumerate(zip(COPIES, copies, strict=True), 1):
        times = ", ".join(f"{one[0][0] / one[n][0]:.2f}" for one in rounds)
        print(f"polars, {what}: {options.rows / copied:,.0f} rows/s, peak {copy_peak:,.0f} MiB", end="; ")
        print(f"ours takes {seconds / copied:.2f} times as long (each round: {times}), {busy / copy_busy:.1f} times the processor")
    return int(worst > min((limit for rows, limit in LIMITS.items() if options.rows <= rows), default=worst))


if __name__ == "__main__":
    sys.exit(main())
