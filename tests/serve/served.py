"""A small data set with everything that data can have, models trained on it for a moment, and the bundle that they make."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from isthmus.data import split
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.events import read_events
from isthmus.fit import fit
from isthmus.how import How
from isthmus.run import Run, build
from isthmus.task import get_task

DOMAINS = ("large", "medium", "small")
ROWS = (500, 250, 80)
HOW = How(epochs=1, progress=False, device="cpu", history_length=8)


def small_data(path: Path, items: int = 60, task: str = "retrieval") -> Dataset:
    """Clicks in three domains with times, behaviours, context and items with fields; ids with spaces, slashes and quotes."""
    rng = np.random.default_rng(0)
    domain = np.repeat(DOMAINS, ROWS)
    n = len(domain)
    frame = pl.DataFrame(
        {
            "user": [f"u {i}/'ü" for i in rng.integers(0, 50, n)],
            "item": [f"i{i}" for i in rng.integers(0, items, n)],
            "domain": domain,
            "time": np.concatenate([rng.permutation(rows) * (100_000 // rows) for rows in ROWS]) + 1_000_000,
            "label": rng.integers(1, 6, n).astype(float) if task == "rating" else rng.integers(0, 2, n),
            "behaviour": rng.choice(["view", "buy"], n),
            "device": rng.choice(["phone", "desk", None], n),
            "hour": [None if v < 0.2 else float(v) for v in rng.random(n)],
        }
    )
    table = pl.DataFrame(
        {
            "item": [f"i{i}" for i in range(65)],
            "group": rng.choice(["a", "b", "c"], 65),
            "tags": [[f"t{t}" for t in rng.choice(6, rng.integers(0, 4), replace=False)] for _ in range(65)],
        }
    )
    names = {name: name for name in ("user", "item", "domain", "time", "label", "behaviour")}
    events = read_events(frame, **names, context=("device", "hour"), items=table)
    return encode(events, split.global_time(events), path)


def run_of(name: str, dataset: Dataset, task: str = "retrieval") -> Run:
    """A model after one epoch."""
    return fit(build(name, dataset.schema, {}, seed=0), dataset, get_task(task), HOW)


@dataclass(frozen=True)
class Served:
    """A bundle, and what it was made from."""

    dataset: Dataset
    runs: tuple[Run, ...]
    path: Path
