"""What every model is tried on: a small data set that holds all there can be, and small worlds whose answer is known."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl
import torch
from torch import Tensor

from isthmus.batch import Batch, Needs, Output
from isthmus.data import split
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.events import Events, read_events
from isthmus.data.synthetic import World, make_world
from isthmus.how import How
from isthmus.layers.table import Table
from isthmus.measure import measure
from isthmus.model import Model
from isthmus.schema import FIRST
from isthmus.score import score
from isthmus.task import Task, get_task

USERS, ITEMS = 50, 40
RATING_MEAN = 3.0
WORLDS = {  # label, users, items, events per domain; how much tastes weigh; learning rate
    "ctr": ("click", 80, 40, 2500, 2.0, 5e-3),
    "rating": ("click", 80, 40, 2500, 1.0, 1e-2),
    "retrieval": ("implicit", 150, 40, 1500, 2.0, 1e-2),
}


def rich_events(domains: Sequence[str] = ("large", "medium", "small")) -> Events:
    """Clicks with behaviours, context and both side tables, some of whose values are missing; those of some domains."""
    rng = np.random.default_rng(0)
    domain = np.repeat(["large", "medium", "small"], [400, 200, 40])
    n = len(domain)
    frame = pl.DataFrame(
        {
            "user": [f"u{i}" for i in rng.integers(0, USERS, n)],
            "item": [f"i{i}" for i in rng.integers(0, ITEMS, n)],
            "domain": domain,
            "time": rng.permutation(n),
            "label": rng.integers(0, 2, n),
            "behaviour": rng.choice(["view", "buy"], n),
            "device": rng.choice(["phone", "desk", None], n),
            "hour": [None if v < 0.2 else float(v) for v in rng.random(n)],
        }
    )
    return read_events(
        frame.filter(pl.col("domain").is_in(list(domains))),
        user="user",
        item="item",
        domain="domain",
        time="time",
        label="label",
        behaviour="behaviour",
        context=("device", "hour"),
        users=side_table("user", USERS + 5, rng),
        items=side_table("item", ITEMS + 5, rng),
    )


def side_table(name: str, n: int, rng: np.random.Generator) -> pl.DataFrame:
    """A categorical, a numeric and a multi-valued field; the last five ids occur in no event."""
    values = rng.random(n)
    return pl.DataFrame(
        {
            name: [f"{name[0]}{i}" for i in range(n)],
            "group": rng.choice(["a", "b", "c"], n),
            "number": [None if v < 0.2 else float(v) for v in values],
            "tags": [[f"t{t}" for t in rng.choice(6, rng.integers(0, 4), replace=False)] for _ in range(n)],
        }
    )


def shake(model: Model) -> None:
    """Moves every weight from where it starts, the same way each time; padding stays zero.  Within ``no_grad`` and ``fork_rng``."""
    torch.manual_seed(1)
    for weight in model.parameters():
        weight += 0.2 * torch.randn_like(weight)
    for table in (m for m in model.modules() if isinstance(m, Table)):
        table.weight[0] = 0.0


@dataclass(frozen=True)
class Known:
    """A data set whose answer is known.

    Attributes:
        dataset, task, how: what to train on, for what, and how.
        low, high: the task's first metric on the test part, of knowing nothing and of knowing the truth.
    """

    dataset: Dataset
    task: Task
    how: How
    low: float
    high: float

    def learnt(self, model: Model) -> float:
        """Share of what can be known that a model knows: 0 like a coin, 1 like the truth."""
        return (first_metric(model, self.dataset, self.task, self.how) - self.low) / (self.high - self.low)


class Told(Model):
    """Scores read from a table (domains, users, items): what knowing it would be worth."""

    tasks: ClassVar[tuple[str, ...]] = ("ctr", "rating", "retrieval")
    table: Tensor

    def __init__(self, dataset: Dataset, table: np.ndarray) -> None:
        super().__init__(dataset.schema)
        self.register_buffer("table", torch.from_numpy(table).float())

    def forward(self, batch: Batch) -> Output:
        """Looks up."""
        return Output(self.table[batch.domain[:, None], batch.user[:, None], batch.item])


def first_metric(model: Model, dataset: Dataset, task: Task, how: How) -> float:
    """The task's first metric on the test part, the mean over domains."""
    frame = measure(score(model, dataset, "test", task=task, how=how), task.metrics[:1], resamples=0)
    return float(frame.filter((pl.col("domain") == "all") & (pl.col("state") == "all"))["value"].item())


def known_world(name: str, path: Path) -> Known:
    """Three related domains; users' tastes and items' appeal decide."""
    if name == "next_item":
        return ordered_world(path)
    task = get_task(name)
    label, users, items, events, signal, lr = WORLDS[name]
    world = make_world(3, label=label, users=users, items=items, events=events, item_overlap=0.8, signal=signal, seed=1)
    log = rated(world) if name == "rating" else world.events
    dataset = encode(log, split.global_time(log, valid=0.1, test=0.2), path)
    truth = true_scores(world, dataset) + (RATING_MEAN if name == "rating" else 0.0)
    nothing = np.full_like(truth, RATING_MEAN) if name == "rating" else np.random.default_rng(0).random(truth.shape)
    how = How(epochs=8, batch_size=256, lr=lr, negatives=8 if task.ranked else None, device="cpu", progress=False)
    low, high = (first_metric(Told(dataset, table).eval(), dataset, task, how) for table in (nothing, truth))
    return Known(dataset, task, how, low, high)


class Follows(Model):
    """Scores read from a table (items, items) by the last event: what knowing what follows would be worth."""

    needs: ClassVar[Needs] = Needs(history=True)
    tasks: ClassVar[tuple[str, ...]] = ("next_item",)
    table: Tensor

    def __init__(self, dataset: Dataset, table: np.ndarray) -> None:
        super().__init__(dataset.schema)
        self.register_buffer("table", torch.from_numpy(table).float())

    def forward(self, batch: Batch) -> Output:
        """Looks up."""
        assert batch.history is not None
        return Output(self.table[batch.history[:, -1:], batch.item])


def ordered_world(path: Path) -> Known:
    """Three domains of one kind of order: after most events comes one of two items that follow the last one, else any."""
    rng, users, items, length = np.random.default_rng(0), 100, 40, 15
    follows = np.stack([rng.permutation(items), rng.permutation(items)], 1)
    last, steps = rng.integers(0, items, (3, users)), []
    for _ in range(length):
        follower = follows[last, rng.integers(0, 2, last.shape)]
        last = np.where(rng.random(last.shape) < 0.9, follower, rng.integers(0, items, last.shape))
        steps.append(last)
    item = np.stack(steps, 2)
    domain, user, place = (index.ravel() for index in np.indices(item.shape))
    columns = {"user": user, "item": item.ravel(), "domain": domain, "time": place * 1000 + rng.integers(0, 1000, len(place))}
    log = read_events(pl.DataFrame(columns).cast({"user": pl.String, "item": pl.String, "domain": pl.String}), **{n: n for n in columns})
    dataset = encode(log, split.global_time(log, valid=0.1, test=0.2), path)
    code = dataset.item_vocabulary.encode(pl.Series([str(i) for i in range(items)]))
    truth = np.zeros((dataset.schema.item.size,) * 2)
    truth[code[:, None], code[follows]] = 1.0
    task, how = get_task("next_item"), How(epochs=25, batch_size=128, lr=5e-3, negatives=8, device="cpu", progress=False, patience=None)
    nothing = np.random.default_rng(0).random(truth.shape)
    low, high = (first_metric(Follows(dataset, table).eval(), dataset, task, how) for table in (nothing, truth))
    return Known(dataset, task, how, low, high)


def rated(world: World) -> Events:
    """The world's events with ratings: 3 + utility + noise."""
    events, rng = world.events, np.random.default_rng(0)
    utility = np.empty(len(events))
    for d in range(len(events.schema.domains)):
        own = events.domain == d
        utility[own] = world.utility(events.user[own], d)[np.arange(own.sum()), events.item[own]]
    label = (RATING_MEAN + utility + 0.3 * rng.standard_normal(len(events))).astype(np.float32)
    return dataclasses.replace(events, label=label, schema=dataclasses.replace(events.schema, label="rating"))


def true_scores(world: World, dataset: Dataset) -> np.ndarray:
    """(domains, user codes, item codes) true utilities; far below all where an item is not in the domain."""
    users = world.events.user_ids.search_sorted(dataset.user_vocabulary.decode(np.arange(FIRST, dataset.schema.user.size))).to_numpy()
    items = world.events.item_ids.search_sorted(dataset.item_vocabulary.decode(np.arange(FIRST, dataset.schema.item.size))).to_numpy()
    table = np.full((len(dataset.schema.domains), dataset.schema.user.size, dataset.schema.item.size), -1e3)
    for d in range(len(table)):
        table[d, FIRST:, FIRST:] = np.maximum(world.utility(users, d)[:, items], -1e3)
    return table
