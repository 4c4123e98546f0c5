"""Training a two-tower retriever, beside torch-rechub's DSSM and a bare PyTorch loop on the same work, in one run.

    python benchmarks/two_tower.py [--threads 2] [--rounds 3] [--quick]

300,000 items, 1,000,000 users, three fields each of width 64, an MLP of 128 and 64, in-batch softmax over 1,024 rows
with log Q and masked accidental hits (the peer has neither).  Rounds are interleaved; the median is reported.  The peer
is installed beside the environment, into ``benchmarks/.peers``; without it the ratio is left out.  Fails below 30.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from torch import nn

from _peers import RECHUB, Part, endless, install
from isthmus.data import split
from isthmus.data.batches import Plan, batches
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.events import read_events
from isthmus.layers.from_data import fill
from isthmus.layers.table import optimisers
from isthmus.run import build
from isthmus.schema import Field
from isthmus.task import retrieval_loss

BATCH, DIM, BAR = 1024, 64, 30.0
USER_FIELDS, ITEM_FIELDS = {"city": 200, "os": 20}, {"category": 5_000, "brand": 1_000}


def table(name: str, size: int, fields: dict[str, int], rng: np.random.Generator) -> pl.DataFrame:
    """One row per id, with its fields."""
    return pl.DataFrame({name: np.arange(size), **{f: rng.integers(0, n, size) for f, n in fields.items()}})


class Work:
    """The same rows for everyone.

    Args:
        users, items: how many.
        rows: each user once, the rest at random; items by a power law.
    """

    def __init__(self, users: int, items: int, rows: int) -> None:
        rng = np.random.default_rng(0)
        self.users, self.items = table("user", users, USER_FIELDS, rng), table("item", items, ITEM_FIELDS, rng)
        self.user = np.concatenate([rng.permutation(users), rng.integers(0, users, rows - users)])
        popular = (rng.random(rows) ** 2 * items).astype(np.int64)
        self.item = rng.permutation(items)[popular]

    def dataset(self, folder: Path) -> Dataset:
        """As Isthmus reads it."""
        frame = pl.DataFrame({"user": self.user, "item": self.item, "domain": np.zeros(len(self.user), np.int8)})
        events = read_events(
            frame,
            user="user",
            item="item",
            domain="domain",
            users=self.users,
            user_id="user",
            user_fields=tuple(Field(name, "categorical") for name in USER_FIELDS),
            items=self.items,
            item_id="item",
            item_fields=tuple(Field(name, "categorical") for name in ITEM_FIELDS),
        )
        return encode(events, split.given(events, np.zeros(len(frame), np.uint8)), folder)

    def columns(self) -> dict[str, np.ndarray]:
        """As the others read it: one array per field."""
        own = {name: self.users[name].to_numpy()[self.user] for name in USER_FIELDS}
        return {"user": self.user, **own, "item": self.item} | {name: self.items[name].to_numpy()[self.item] for name in ITEM_FIELDS}

    @property
    def sizes(self) -> dict[str, int]:
        """Ids of every field."""
        return {"user": len(self.users), **USER_FIELDS, "item": len(self.items), **ITEM_FIELDS}


def ours(dataset: Dataset) -> Callable[[int], float]:
    """Isthmus: its loader, model, loss and optimisers, as ``fit`` puts them together."""
    args: dict[str, Any] = {"network": "dnn", "network_args": {"hidden": [128]}, "residual": False, "history": False, "temperature": 0.05}
    model = build("two_tower", dataset.schema, {"dim": DIM, **args})
    fill(model, dataset)
    found, _ = optimisers(model, 1e-3)
    stream = batches(dataset, "train", model.needs, Plan(BATCH, sampler="in_batch"))
    model.train()

    def run(steps: int) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            loss = retrieval_loss(model, next(stream))["loss"]
            for optimiser in found:
                optimiser.zero_grad(set_to_none=True)
            loss.backward()
            for optimiser in found:
                optimiser.step()
        return steps * BATCH / (time.perf_counter() - start)

    return run


class Tower(nn.Module):
    """The bare loop's tower."""

    def __init__(self, sizes: dict[str, int]) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({name: nn.Embedding(n, DIM, sparse=n > 4096) for name, n in sizes.items()})
        for t in self.tables.values():
            nn.init.normal_(t.weight, 0, 0.01)  # type: ignore[arg-type]
        self.mlp = nn.Sequential(nn.Linear(DIM * len(sizes), 128), nn.ReLU(), nn.Linear(128, DIM))

    def forward(self, row: dict[str, torch.Tensor]) -> torch.Tensor:
        return F.normalize(self.mlp(torch.cat([t(row[name]) for name, t in self.tables.items()], 1)), dim=1)


def bare(columns: dict[str, np.ndarray], sizes: dict[str, int]) -> Callable[[int], float]:
    """The limit: PyTorch alone, columns in memory, lazy Adam for the tables."""
    names = list(sizes)
    towers = [Tower({name: sizes[name] for name in names[i : i + 3]}) for i in (0, 3)]
    tensors = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in columns.items()}
    log_q = (torch.bincount(tensors["item"], minlength=sizes["item"]).float() / len(tensors["item"])).clamp_min(1e-9).log()
    large = [t.weight for tower in towers for t in tower.tables.values() if t.sparse]
    rest = [p for tower in towers for p in tower.parameters() if all(p is not w for w in large)]
    found = [torch.optim.SparseAdam(large, lr=1e-3), torch.optim.Adam(rest, fused=True)]
    order, eye = torch.randperm(len(tensors["item"])).split(BATCH), torch.eye(BATCH, dtype=torch.bool)
    place = 0

    def run(steps: int) -> float:
        nonlocal place
        start = time.perf_counter()
        for _ in range(steps):
            row = {name: values[order[place]] for name, values in tensors.items()}
            place = (place + 1) % (len(order) - 1)
            logit = towers[0](row) @ towers[1](row).T / 0.05 - log_q[row["item"]]
            logit = logit.masked_fill((row["item"][:, None] == row["item"]) & ~eye, -1e9)
            loss = F.cross_entropy(logit, torch.arange(BATCH))
            for optimiser in found:
                optimiser.zero_grad()
            loss.backward()
            for optimiser in found:
                optimiser.step()
        return steps * BATCH / (time.perf_counter() - start)

    return run


def peer(columns: dict[str, np.ndarray], sizes: dict[str, int]) -> Callable[[int], float] | None:
    """torch-rechub's DSSM with in-batch negatives, through its own loader and trainer; None when it cannot be had."""
    try:
        install("torch_rechub", RECHUB)
    except ImportError:
        return None
    from torch_rechub.basic.features import SparseFeature  # pyright: ignore
    from torch_rechub.models.matching import DSSM  # pyright: ignore
    from torch_rechub.trainers import MatchTrainer  # pyright: ignore
    from torch_rechub.utils.data import MatchDataGenerator  # pyright: ignore

    names = list(sizes)
    user, item = ([SparseFeature(name, sizes[name], DIM) for name in names[i : i + 3]] for i in (0, 3))
    model = DSSM(user, item, user_params={"dims": [128, DIM]}, item_params={"dims": [128, DIM]})
    trainer = MatchTrainer(model, mode=2, in_batch_neg=True)
    few = [{name: columns[name][:9] for name in names[i : i + 3]} for i in (0, 3)]
    generator = MatchDataGenerator(columns, np.zeros(len(columns["user"]), np.int64))
    loader, _, _ = generator.generate_dataloader(*few, batch_size=BATCH, num_workers=0)
    stream = endless(loader)

    def run(steps: int) -> float:
        start = time.perf_counter()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            trainer.train_one_epoch(Part(stream, steps))
        return steps * BATCH / (time.perf_counter() - start)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a hundredth of the size, and no bar: does it run?")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    shrink = 100 if given.quick else 1
    work = Work(1_000_000 // shrink, 300_000 // shrink, max(1_200_000 // shrink, 60 * BATCH))
    columns = work.columns()
    with tempfile.TemporaryDirectory() as folder:
        runs = {"isthmus": ours(work.dataset(Path(folder) / "data")), "bare loop": bare(columns, work.sizes)}
        other = peer(columns, work.sizes)
        if other is not None:
            runs["torch-rechub"] = other
        steps = {"isthmus": 100 // (10 if given.quick else 1), "bare loop": 100 // (10 if given.quick else 1), "torch-rechub": 6}
        for name, run in runs.items():
            run(max(2, steps[name] // 10))  # warm up
        rates: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(given.rounds):
            for name, run in runs.items():
                rates[name].append(run(steps[name]))
    median = {name: statistics.median(values) for name, values in rates.items()}
    for name, value in median.items():
        print(f"{name:>14}  {value:>9,.0f} rows/s")
    print(f"isthmus / bare loop: {median['isthmus'] / median['bare loop']:.2f}")
    ratio = median["isthmus"] / median["torch-rechub"] if "torch-rechub" in median else None
    print("torch-rechub could not be installed" if ratio is None else f"isthmus / torch-rechub: {ratio:.1f} (at least {BAR:g})")
    print(json.dumps({name: round(value) for name, value in median.items()}))
    if ratio is not None and ratio < BAR and not given.quick:
        sys.exit(1)


if __name__ == "__main__":
    main()
