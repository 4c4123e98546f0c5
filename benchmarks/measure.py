"""Judging a comparison must cost little more than reading its scores: seconds and peak memory, and a second time from what was kept.

    python benchmarks/measure.py [--tables 12] [--queries 16900]

Tables of scores of one candidate list of 100 items per query in three domains, judged by recall@10, ndcg@10 and mrr for every domain
and user state with 1,000 resamples of users, and by recall@10 with 2,000 more for the ledger, each by a fresh process.  The bar is
relative to reading the same columns with pyarrow and sorting each table once with numpy.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

DOMAINS, LIST = ("s1", "s2", "s3"), 100
COLUMNS = ["group", "user", "item", "domain", "label", "score", "state"]
BAR, AGAIN = 1.5, 0.15  # times the bare work: judged anew, and read from what was kept
LIMIT = 1024  # MiB, however many tables
ONE = {"OMP_NUM_THREADS": "1", "POLARS_MAX_THREADS": "1"}


def make(folder: Path, tables: int, queries: int) -> None:
    """The tables: the same users and lists, scores of their own."""
    from isthmus.scores import Scores

    truth = np.random.default_rng(0)
    user = np.repeat(np.arange(queries), LIST)
    label = np.zeros((queries, LIST), np.float32)
    label[np.arange(queries), truth.integers(0, LIST, queries)] = 1
    columns = {
        "group": user,
        "user": user,
        "item": truth.integers(0, 10_000, len(user)),
        "domain": np.array(DOMAINS)[user * len(DOMAINS) // queries],
        "label": label.reshape(-1),
        "state": np.array(["new", "few", "many"])[truth.integers(0, 3, queries)][user],
        "relevant": np.ones(len(user), np.int64),
    }
    frame = pl.DataFrame(columns)
    for number in range(tables):
        score = np.random.default_rng(number + 1).normal(size=len(user)) + 2 * columns["label"]
        Scores.from_frame(frame.with_columns(score=score), "lists").save(folder / f"{number}.parquet")


def bare(folder: Path) -> None:
    """The least that ranking needs: the columns, and each table sorted once by query and score."""
    for path in sorted(folder.glob("*[0-9].parquet")):
        table = pq.read_table(path, columns=COLUMNS, read_dictionary=["domain", "state"])
        assert isinstance(table, pa.Table)
        np.lexsort((-table["score"].to_numpy(), table["group"].to_numpy()))


def judge(folder: Path) -> None:
    """Everything that the tables and the ledger of a comparison need."""
    from isthmus.judged import Asked, judged_file

    asked = Asked(("recall@10", "ndcg@10", "mrr"), 1000, ("recall@10",), 2000)
    for path in sorted(folder.glob("*[0-9].parquet")):
        judged_file(path, asked)


def child(what: str, folder: Path) -> tuple[float, float]:
    """Runs one job in a fresh process: processor seconds of the job alone, and peak memory in MiB."""
    command = [sys.executable, __file__, "--child", what, str(folder)]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=os.environ | ONE)
    busy, peak = map(float, result.stdout.split())
    return busy, peak


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=int, default=12)
    parser.add_argument("--queries", type=int, default=16_900)
    parser.add_argument("--child", nargs=2, metavar=("JOB", "FOLDER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        import isthmus.judged  # noqa: F401  # the import is not counted

        start = time.process_time()
        {"bare": bare, "judge": judge}[options.child[0]](Path(options.child[1]))
        print(time.process_time() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
        return 0
    with tempfile.TemporaryDirectory() as name:
        make(Path(name), options.tables, options.queries)
        found = {what: child(job, Path(name)) for what, job in (("bare", "bare"), ("first", "judge"), ("again", "judge"))}
    least = found["bare"][0]
    for what, (busy, peak) in found.items():
        print(f"{what:<6} {busy:6.2f} s of processor time, {busy / options.tables:.3f} s a table, peak {peak:5.0f} MiB")
    first, again = found["first"][0] / least, found["again"][0] / least
    print(f"{options.tables} tables of {options.queries * LIST:,} lines: judged in {first:.2f} times reading and sorting (bar: {BAR}),")
    print(f"again in {again:.2f} times (bar: {AGAIN}); at most {LIMIT} MiB allowed")
    return int(first > BAR or again > AGAIN or max(peak for _, peak in found.values()) > LIMIT)


if __name__ == "__main__":
    sys.exit(main())
