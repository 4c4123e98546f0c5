"""What training on several processes costs: one process against two on the same batches, each with its share of the cores.

    python benchmarks/ranks.py [--model mmoe] [--steps 60] [--rounds 3] [--sharded]

400,000 rows of three domains, 200,000 users, 50,000 items, batches of 4,096.  One process has two threads, each of two ranks one.  Prints
rows per second of both, the ratio, the bytes that a rank sends for a step, and whether the first ten losses agree (to 1e-6: ids are not
dropped out).  With --sharded the two ranks split the tables.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
import torch

from isthmus.allocator import keep_blocks
from isthmus.data import split
from isthmus.data.batches import Plan, batches
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.events import read_events
from isthmus.layers.from_data import fill
from isthmus.layers.table import optimisers
from isthmus.ranks import Ranks
from isthmus.run import build
from isthmus.shards import Shards
from isthmus.stages import training
from isthmus.task import get_task

ROWS, USERS, ITEMS, BATCH = 400_000, 200_000, 50_000, 4096
EARLY = 10  # steps whose losses are compared: later ones drift apart by rounding, as those of two processors do


def prepare(folder: Path) -> None:
    rng = np.random.default_rng(0)
    frame = pl.DataFrame(
        {
            "user": (rng.random(ROWS) ** 2 * USERS).astype(np.int64),
            "item": (rng.random(ROWS) ** 2 * ITEMS).astype(np.int64),
            "domain": rng.choice(["a", "b", "c"], ROWS, p=[0.6, 0.3, 0.1]),
            "label": (rng.random(ROWS) < 0.3).astype(np.int8),
        }
    )
    events = read_events(frame, user="user", item="item", domain="domain", label="label")
    encode(events, split.given(events, np.zeros(ROWS, np.uint8)), folder)


def train(folder: Path, model: str, steps: int, rounds: int, sharded: bool) -> None:
    """One rank; the first one prints."""
    ranks = Ranks.join(torch.device("cpu"))
    torch.set_num_threads(max(1, 2 // ranks.size))
    keep_blocks()
    dataset = Dataset.load(folder)
    network = build(model, dataset.schema, {})
    fill(network, dataset)
    shards = Shards.split(network, ranks) if sharded and ranks.size > 1 else Shards(ranks)
    ranks.align(network, shards)
    for module in network.modules():
        if hasattr(module, "id_dropout"):
            module.id_dropout = 0.0
    found, _ = optimisers(network, 1e-3)
    plan = Plan(BATCH, rank=ranks.rank, ranks=ranks.size)
    training(network)
    parameters, loss_of, rates, first = list(network.parameters()), get_task("ctr").loss, [], 0.0
    for n in range(rounds + 1):
        begin, losses = time.perf_counter(), []
        for batch in batches(dataset, "train", network.needs, plan, epoch=n):
            if len(losses) == steps:
                break
            with shards.open():
                loss = loss_of(network, batch)["loss"] * batch.share
            for p in parameters:
                p.grad = None
            loss.backward()
            shards.exchange()
            ranks.exchange(network, apart=shards)
            for optimiser in found:
                optimiser.step()
            losses.append(loss.detach())
        first = first or ranks.sum(torch.stack(losses[:EARLY])).mean().item()
        if n:
            rates.append(len(losses) * BATCH / (time.perf_counter() - begin))
    if ranks.first:
        done = (rounds + 1) * len(losses)
        print(json.dumps({"rate": statistics.median(rates), "loss": first, "sent": ranks.sent / done}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="mmoe")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sharded", action="store_true")
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.data is not None:
        train(given.data, given.model, given.steps, given.rounds, given.sharded)
        return
    found = {}
    with tempfile.TemporaryDirectory() as temporary:
        prepare(Path(temporary) / "data")
        own = [__file__, "--data", f"{temporary}/data", "--model", given.model, "--steps", str(given.steps), "--rounds", str(given.rounds)]
        own += ["--sharded"] * given.sharded
        for size in (1, 2):
            launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(size)] if size > 1 else []
            environment = {**os.environ, "OMP_NUM_THREADS": str(2 // size)}
            done = subprocess.run([sys.executable, *launch, *own], capture_output=True, text=True, check=False, env=environment)
            if done.returncode:
                sys.exit(done.stderr)
            found[size] = json.loads(done.stdout.splitlines()[-1])
    one, two = found[1], found[2]
    print(f"1 process, 2 threads   {one['rate']:>9,.0f} rows/s   loss {one['loss']:.8f}")
    print(
        f"2 ranks, 1 thread each {two['rate']:>9,.0f} rows/s   loss {two['loss']:.8f}   {two['sent'] / 2**20:.2f} MiB sent a step and rank"
    )
    apart = abs(two["loss"] / one["loss"] - 1)
    print(f"2 ranks / 1 process: {two['rate'] / one['rate']:.2f}; the first steps' losses differ by {apart:.1e} (at most 1e-06)")
    print(json.dumps({str(size): facts for size, facts in found.items()}))
    if apart > 1e-6:
        sys.exit(1)


if __name__ == "__main__":
    main()
