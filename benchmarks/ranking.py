"""Ranking a whole catalogue for every user, against one matrix product and topk on the same vectors, in one run.

    python benchmarks/ranking.py [--users 20000] [--items 300000] [--k 100] [--threads 2] [--rounds 3]

``score`` with a two-tower model of width 64: vectors, scores, hiding what each user has had, exact ranks of the relevant items, the
first k places, and the table that measures are taken from.  The bare loop has its vectors made already and does nothing but the
products and the first k.  Rounds are interleaved; medians are reported.  Fails where ours is slower than .8 of the bare loop.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import torch

from isthmus.data import split
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.events import read_events
from isthmus.how import How
from isthmus.model import Retriever, scoring
from isthmus.run import build
from isthmus.score import score
from isthmus.task import get_task

DIM, BAR = 64, 0.8
BLOCKS = (32, 128, 512)  # of users in the bare loop; the best one counts


def data(folder: Path, users: int, items: int) -> Dataset:
    """Every item is known; each user has three training events and one in the test part."""
    rng = np.random.default_rng(0)
    known = rng.permutation(np.concatenate([np.arange(items), rng.integers(0, items, max(0, 3 * users - items))]))
    user = np.concatenate([np.arange(len(known)) % users, np.arange(users)])
    item = np.concatenate([known, rng.integers(0, items, users)])
    frame = pl.DataFrame({"user": user, "item": item, "domain": np.zeros(len(user), np.int8), "time": np.arange(len(user))})
    events = read_events(frame, user="user", item="item", domain="domain", time="time")
    part = np.where(np.arange(len(user)) < len(known), split.TRAIN, split.TEST)
    return encode(events, split.given(events, part), folder / "data")


def bare(users: torch.Tensor, items: torch.Tensor, k: int, block: int) -> float:
    """Seconds of products and first k alone."""
    begin = time.perf_counter()
    for part in users.split(block):
        (part @ items.T).topk(k, 1)
    return time.perf_counter() - begin


def main() -> int:
    """Prints users per second of both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--items", type=int, default=300_000)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    ours, theirs = list[float](), {block: list[float]() for block in BLOCKS}
    with tempfile.TemporaryDirectory(prefix="isthmus-benchmark-") as folder, torch.no_grad():
        dataset = data(Path(folder), options.users, options.items)
        model = build("two_tower", dataset.schema, {"dim": DIM}, seed=0)
        assert isinstance(model, Retriever)
        some = (
            torch.nn.functional.normalize(torch.randn(options.users, DIM)),
            torch.nn.functional.normalize(torch.randn(options.items, DIM)),
        )
        for _ in range(options.rounds):
            begin = time.perf_counter()
            found = score(model, dataset, task=get_task("next_item"), how=How(progress=False), k=options.k)
            ours.append(options.users / (time.perf_counter() - begin))
            assert found.frame["user"].n_unique() == options.users
            with scoring(model):
                for block in BLOCKS:
                    theirs[block].append(options.users / bare(*some, options.k, block))
    best = max(statistics.median(rates) for rates in theirs.values())
    ratio = statistics.median(ours) / best
    size = f"{options.users:,} users x {options.items:,} items"
    print(f"{size}: {statistics.median(ours):,.0f} users/s; products and topk {best:,.0f}; {ratio:.2f}")
    print(json.dumps({"users_per_s": ours, "bare": theirs, "ratio": ratio}))
    return int(ratio < BAR)


if __name__ == "__main__":
    sys.exit(main())
