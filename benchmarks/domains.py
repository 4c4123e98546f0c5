"""A hundred domains should train as fast per row as three: step time of one model on the same rows.

    python benchmarks/domains.py [--model mmoe] [--steps 30] [--threads 1]

Prints rows per second with 3 and with 100 domains, interleaved in one run, and their ratio; fails above 1.3.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time

import torch

from isthmus.batch import Batch
from isthmus.layers.losses import binary_cross_entropy
from isthmus.layers.table import optimisers
from isthmus.models import get_model
from isthmus.schema import Domain, Entity, Schema

ROWS, USERS, ITEMS, HISTORY = 4096, 1_000_000, 300_000, 20
BAR = 1.3


def schema(domains: int) -> Schema:
    names = tuple(Domain(f"d{i}") for i in range(domains))
    return Schema(Entity("user", (), USERS, USERS), Entity("item", (), ITEMS, ITEMS), names, label="click", timed=True)


def batch(domains: int, generator: torch.Generator) -> Batch:
    counts = torch.full((domains,), ROWS // domains)
    counts[: ROWS % domains] += 1
    return Batch(
        user=torch.randint(2, USERS, (ROWS,), generator=generator),
        item=torch.randint(2, ITEMS, (ROWS, 1), generator=generator),
        domain=torch.arange(domains).repeat_interleave(counts),
        offsets=(0, *counts.cumsum(0).tolist()),
        label=torch.randint(0, 2, (ROWS, 1), generator=generator).float(),
        history=torch.randint(2, ITEMS, (ROWS, HISTORY), generator=generator),
    )


class Bench:
    """One model with its optimisers; ``step`` is one training step."""

    def __init__(self, name: str, domains: int) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.domains = domains
        self.model = get_model(name)(schema(domains), dim=16)
        self.optimisers, _ = optimisers(self.model, 1e-3)

    def step(self) -> float:
        data = batch(self.domains, self.generator)
        assert data.label is not None
        start = time.perf_counter()
        binary_cross_entropy(self.model(data).logit, data.label).backward()
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad()
        return time.perf_counter() - start


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="mmoe")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1, help="more than the machine has to spare measures its scheduler")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    few, many = Bench(arguments.model, 3), Bench(arguments.model, 100)
    times: dict[int, list[float]] = {3: [], 100: []}
    for number in range(arguments.steps + 5):
        for bench in (few, many):  # interleaved: the machine's mood hits both alike
            elapsed = bench.step()
            if number >= 5:
                times[bench.domains].append(elapsed)
    median = {domains: statistics.median(values) for domains, values in times.items()}
    ratio = statistics.median(b / a for a, b in zip(times[3], times[100], strict=True))
    for domains, value in median.items():
        print(f"{arguments.model}, {domains:>3} domains: {1e3 * value:6.1f} ms a step, {ROWS / value:>9,.0f} rows/s")
    print(f"100 domains take {ratio:.2f} times as long per row as 3 (bar: {BAR}; {arguments.threads} thread(s))")
    return int(ratio > BAR)


if __name__ == "__main__":
    sys.exit(main())
