"""Training DIN, beside FuxiCTR's, torch-rechub's and a bare PyTorch loop on the same rows, in one run.

    python benchmarks/din.py [--threads 2] [--rounds 3] [--quick]

300,000 items, 1,000,000 users, 500,000 rows of three domains, eight fields of width 16, histories of up to 50 clicks (about 26
on average), attention 64, network 256 and 128 with Dice between layers, batches of 4,096; loaders included.  Each trains in a
process of its own, as it comes: Isthmus keeps freed memory for the next step (``isthmus.allocator``), the others do not.  Rounds are
interleaved; the median is reported.  Fails below 4.5 times FuxiCTR.

The histories are what Isthmus cuts from its data set, each row's earlier clicks of its user in its domain; the others get these
very histories, padded.  Isthmus and the bare loop pack them: padding costs nothing and has no weight.  FuxiCTR computes padding and
masks it; torch-rechub lets it take part in attention like any item.  Both sweep their tables with Adam, their default.

The peers are installed beside the environment, into ``benchmarks/.peers``; a ratio to one that cannot be had is left out.
FuxiCTR's wheel has no DIN for its ordinary loaders, only LongCTR's, which reads items and padded histories in one lookup: this is
the one trained here, on rows of FuxiCTR's own npz loader, put into the order in which LongCTR's DIN wants them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import statistics
import subprocess
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
from torch import Tensor, nn

from _peers import RECHUB, Part, endless, install
from isthmus.allocator import keep_blocks
from isthmus.batch import Needs
from isthmus.data import split
from isthmus.data.batches import Plan, batches
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.events import read_events
from isthmus.layers.from_data import fill
from isthmus.layers.table import optimisers
from isthmus.run import build
from isthmus.schema import Field
from isthmus.task import get_task

RAY = ("ray==2.52.0", "msgpack", "requests", "urllib3", "certifi", "idna", "charset-normalizer", "jsonschema", "jsonschema-specifications")
RAY += ("referencing", "rpds-py", "attrs")
FUXICTR = ("fuxictr==2.3.10", "h5py", "pyyaml", "tqdm", *RAY)  # it imports ray, although nothing of ray runs here
BATCH, DIM, LENGTH, ATTENTION, HIDDEN, BAR = 4096, 16, 50, 64, [256, 128], 4.5
CONTEXT = {"category": 5_000, "brand": 1_000, "city": 200, "hour": 50, "os": 20}
DOMAINS, SHARES, TRAINED = ("first", "second", "third", "elsewhere"), (0.6, 0.3, 0.1), (0, 1, 2)
ROWS_PER_USER = 200  # of those who have rows in the trained domains, on average

Run = Callable[[int], float]  # a number of steps -> rows per second


def work(folder: Path, users: int, items: int, rows: int) -> Dataset:
    """The log, as Isthmus reads it.

    Few users have many rows, unevenly, in the trained domains, half of them clicks.  The domain ``elsewhere`` names every user and
    every item once, so that the tables have the size asked for; nobody trains on it.
    """
    rng = np.random.default_rng(0)
    activity = rng.lognormal(0, 0.75, max(rows // ROWS_PER_USER, 1))
    user = np.concatenate([rng.choice(len(activity), rows, p=activity / activity.sum()), rng.permutation(users)])
    item = np.concatenate([rng.permutation(items)[(rng.random(rows) ** 2 * items).astype(np.int64)], np.arange(users) % items])
    domain = np.concatenate([rng.choice(len(SHARES), rows, p=SHARES), np.full(users, len(SHARES))])
    frame = pl.DataFrame({"user": user, "item": item, "domain": np.array(DOMAINS)[domain], "time": rng.permutation(len(user))})
    frame = frame.with_columns(
        pl.Series("label", rng.integers(0, 2, len(user))),
        *(pl.Series(name, rng.integers(0, size, len(user))) for name, size in CONTEXT.items()),
    )
    context = [Field(name, "categorical") for name in CONTEXT]
    events = read_events(
        frame, user="user", item="item", domain="domain", time="time", label="label", context=context, domains=DOMAINS, time_unit="step"
    )
    return encode(events, split.given(events, np.zeros(len(user), np.uint8)), folder)


def columns(dataset: Dataset) -> dict[str, np.ndarray]:
    """The trained rows as the others read them: an int32 array for each field, ``hist`` (rows, 50) and ``label``; 0 pads."""
    found: dict[str, list[Tensor]] = {}
    plan = Plan(BATCH, history_length=LENGTH, domains=TRAINED)
    for batch in batches(dataset, "train", Needs(history=True, context=True), plan, shuffle=False):
        assert batch.history is not None
        assert batch.label is not None
        row = {"user": batch.user, "item": batch.item[:, 0], "domain": batch.domain + 1, **batch.context}
        for name, values in {**row, "hist": batch.history, "label": batch.label[:, 0]}.items():
            found.setdefault(name, []).append(values.int())
    return {name: torch.cat(values).numpy() for name, values in found.items()}


def sizes(dataset: Dataset) -> dict[str, int]:
    """Codes of every field, padding included."""
    schema = dataset.schema
    coded = {field.name: field.size for field in schema.context}
    return {"user": schema.user.size, "item": schema.item.size, "domain": len(schema.domains) + 1, **coded}


def timed(steps: int, train: Callable[[], object]) -> float:
    """Rows per second of training on some batches."""
    start = time.perf_counter()
    train()
    return steps * BATCH / (time.perf_counter() - start)


def ours(dataset: Dataset) -> Run:
    """Isthmus: its loader, model, loss and optimisers, as ``fit`` puts them together."""
    model = build("din", dataset.schema, {"dim": DIM, "attention": [ATTENTION], "hidden": HIDDEN})
    fill(model, dataset)
    found, _ = optimisers(model, 1e-3)
    loss, plan = get_task("ctr").loss, Plan(BATCH, history_length=LENGTH, domains=TRAINED)
    stream = (batch for epoch in itertools.count() for batch in batches(dataset, "train", model.needs, plan, epoch=epoch))
    model.train()

    def train(steps: int) -> None:
        for batch in itertools.islice(stream, steps):
            total = torch.stack(list(loss(model, batch).values())).sum()
            for optimiser in found:
                optimiser.zero_grad(set_to_none=True)
            total.backward()
            for optimiser in found:
                optimiser.step()

    return lambda steps: timed(steps, lambda: train(steps))


class Dice(nn.Module):
    """The bare loop's activation."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.slope = nn.BatchNorm1d(width, affine=False), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        p = self.norm(x).sigmoid()
        return x * (self.slope + (1 - self.slope) * p)


class Network(nn.Module):
    """The bare loop's DIN: only real events are computed, and the first layer on [t, h, t - h, t * h] meets t once per row."""

    def __init__(self, sizes: dict[str, int]) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({name: nn.Embedding(size, DIM, sparse=size > 4096) for name, size in sizes.items()})
        for table in self.tables.values():
            nn.init.normal_(table.weight, 0, 0.01)  # type: ignore[arg-type]
        self.first, self.rest = nn.Linear(4 * DIM, ATTENTION), nn.Sequential(Dice(ATTENTION), nn.Linear(ATTENTION, 1))
        layers: list[nn.Module] = []
        for before, width in itertools.pairwise([(len(sizes) + 1) * DIM, *HIDDEN]):
            layers += [nn.Linear(before, width), Dice(width)]
        self.mlp = nn.Sequential(*layers, nn.Linear(HIDDEN[-1], 1))

    def forward(self, x: dict[str, Tensor]) -> Tensor:
        fields = [table(x[name]) for name, table in self.tables.items()]
        row, column = x["hist"].nonzero(as_tuple=True)
        target, event = fields[list(self.tables).index("item")], self.tables["item"](x["hist"][row, column])
        of_target, of_event, of_difference, of_product = self.first.weight.split(DIM, 1)
        once = F.linear(target, of_target + of_difference, self.first.bias)
        score = once[row] + F.linear(event, of_event - of_difference) + F.linear(target[row] * event, of_product)
        pooled = torch.zeros_like(target).index_add(0, row, self.rest(score) * event)
        return self.mlp(torch.cat([pooled, *fields], 1))[:, 0]


def bare(columns: dict[str, np.ndarray], sizes: dict[str, int]) -> Run:
    """The limit: PyTorch alone, columns in memory, lazy Adam for the tables."""
    model = Network(sizes)
    tensors = {name: torch.from_numpy(values) for name, values in columns.items()}
    large = [p for p in model.tables.parameters() if len(p) > 4096]
    rest = [p for p in model.parameters() if all(p is not w for w in large)]
    found = [torch.optim.SparseAdam(large, lr=1e-3), torch.optim.Adam(rest, fused=True)]
    stream = (rows for _ in itertools.count() for rows in torch.randperm(len(tensors["label"])).split(BATCH))

    def train(steps: int) -> None:
        for rows in itertools.islice(stream, steps):
            x = {name: values[rows].long() for name, values in tensors.items()}
            loss = F.binary_cross_entropy_with_logits(model(x), x["label"].float())
            for optimiser in found:
                optimiser.zero_grad()
            loss.backward()
            for optimiser in found:
                optimiser.step()

    return lambda steps: timed(steps, lambda: train(steps))


def rechub(columns: dict[str, np.ndarray], sizes: dict[str, int], folder: Path) -> Run:
    """torch-rechub's DIN, through its own loader and trainer."""
    install("torch_rechub", RECHUB)
    from torch_rechub.basic.features import SequenceFeature, SparseFeature  # pyright: ignore
    from torch_rechub.models.ranking import DIN  # pyright: ignore
    from torch_rechub.trainers import CTRTrainer  # pyright: ignore
    from torch_rechub.utils.data import DataGenerator  # pyright: ignore

    feature = {name: SparseFeature(name, size, DIM) for name, size in sizes.items()}
    history = SequenceFeature("hist", sizes["item"], DIM, pooling="concat", shared_with="item")
    target = feature.pop("item")
    model = DIN(list(feature.values()), [history], [target], {"dims": HIDDEN}, {"dims": [ATTENTION]})
    trainer = CTRTrainer(model, model_path=str(folder))
    x, few = {name: values for name, values in columns.items() if name != "label"}, {name: values[:9] for name, values in columns.items()}
    y = few.pop("label")
    loader, _, _ = DataGenerator(x, columns["label"]).generate_dataloader(few, y, few, y, batch_size=BATCH)
    stream = endless(loader)

    def train(steps: int) -> None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            trainer.train_one_epoch(Part(stream, steps))

    return lambda steps: timed(steps, lambda: train(steps))


def fuxictr(columns: dict[str, np.ndarray], sizes: dict[str, int], folder: Path) -> Run:
    """FuxiCTR's DIN (LongCTR's), through its npz loader and its ``fit``."""
    install("fuxictr", FUXICTR)
    from fuxictr.features import FeatureMap  # pyright: ignore
    from fuxictr.pytorch.dataloaders import RankDataLoader  # pyright: ignore
    from model_zoo.LongCTR.DIN import DIN  # pyright: ignore

    def feature_map(name: str, features: list[dict[str, Any]]) -> Any:
        path = folder / f"{name}.json"
        path.write_text(json.dumps({"dataset_id": name, "labels": ["label"], "features": features}))
        found = FeatureMap(name, str(folder))
        found.load(str(path), {"embedding_dim": DIM})
        return found

    class Rows(DIN):
        """LongCTR's DIN on rows with a padded history."""

        def get_inputs(self, inputs: dict[str, Tensor], feature_source: Any = None) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
            """The other fields; each row's events and then its item, flat; which events are real."""
            history, item = inputs["hist"], inputs["item"][:, None]
            others = {name: inputs[name] for name in sizes if name != "item"}
            return others, {"item": torch.cat([history, item], 1).flatten()}, (history > 0).float()

        def get_labels(self, inputs: dict[str, Tensor]) -> Tensor:
            return inputs["label"].float().view(-1, 1)

        def load_weights(self, checkpoint: str) -> None:
            """Nothing: ``fit`` would end by reading back the best weights on validation, which is not run."""

    fields = [
        {name: {"source": "item" if name == "item" else "", "type": "categorical", "padding_idx": 0, "vocab_size": size}}
        for name, size in sizes.items()
    ]
    history = {"source": "", "type": "sequence", "padding_idx": 0, "vocab_size": sizes["item"], "max_len": LENGTH}
    arrays: dict[str, Any] = dict(columns)
    np.savez(folder / "train.npz", **arrays)
    loader, _ = RankDataLoader(
        feature_map("rows", [*fields, {"hist": history}]),
        stage="train",
        train_data=str(folder / "train.npz"),
        batch_size=BATCH,
        data_format="npz",
        num_workers=0,
    )
    model = Rows(
        feature_map("model", fields),
        dnn_hidden_units=HIDDEN,
        dnn_activations="Dice",
        attention_hidden_units=[ATTENTION],
        embedding_dim=DIM,
        optimizer="adam",
        loss="binary_crossentropy",
        eval_steps=sys.maxsize,
        verbose=0,
        metrics=["logloss"],
        model_root=str(folder),
    )
    stream = endless(loader)
    return lambda steps: timed(steps, lambda: model.fit(Part(stream, steps), epochs=1))


TRAINERS = ("isthmus", "bare loop", "fuxictr", "torch-rechub")


def serve(name: str, folder: Path) -> None:
    """One trainer in a process of its own: how the memory of one is kept must not help another.

    Says ``ready`` or why it cannot be had; then, for each number of steps that comes, rows per second.
    """
    out, sys.stdout = sys.stdout, sys.stderr  # whatever peers print
    dataset = Dataset.load(folder / "data")
    own = folder / name
    own.mkdir()
    try:
        if name == "isthmus":
            keep_blocks()  # as ``fit`` does
            run = ours(dataset)
        else:
            read = dict(np.load(folder / "rows.npz"))
            count, peers = sizes(dataset), {"fuxictr": fuxictr, "torch-rechub": rechub}
            run = bare(read, count) if name == "bare loop" else peers[name](read, count, own)
    except (ImportError, AttributeError) as error:
        print(error, file=out, flush=True)
        return
    run(3)  # warm up
    print("ready", file=out, flush=True)
    for line in sys.stdin:
        print(run(int(line)), file=out, flush=True)


class Trainer:
    """A trainer's process, as its parent sees it.

    Args:
        name: of ``TRAINERS``.
        folder: of the data.
        threads: of torch.

    Attributes:
        missing: why it cannot be had; "" when it can.
        rates: rows per second, by round.
    """

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        command = [sys.executable, __file__, "--trainer", name, "--data", str(folder), "--threads", str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        said = self._read()
        self.missing = "" if said == "ready" else said or "it ended"
        self.rates: list[float] = []

    def run(self, steps: int) -> None:
        """Another round."""
        assert self.process.stdin is not None
        print(steps, file=self.process.stdin, flush=True)
        self.rates.append(float(self._read()))

    def end(self) -> None:
        """Lets the process go."""
        self.process.communicate()

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="a hundredth of the size, and no bar: does it run?")
    parser.add_argument("--trainer", choices=TRAINERS, help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    if given.trainer:
        serve(given.trainer, given.data)
        return
    shrink = 100 if given.quick else 1
    rows = max(500_000 // shrink // BATCH, 4) * BATCH  # every batch is full
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        dataset = work(folder / "data", 1_000_000 // shrink, 300_000 // shrink, rows)
        read, count = columns(dataset), sizes(dataset)
        arrays: dict[str, Any] = dict(read)
        np.savez(folder / "rows.npz", **arrays)
        filled = np.count_nonzero(read["hist"]) / rows
        print(f"{rows:,} rows, {count['user']:,} users, {count['item']:,} items, {filled:.1f} of {LENGTH} events on average", flush=True)
        trainers = {name: Trainer(name, folder, given.threads) for name in TRAINERS}
        there = {name: trainer for name, trainer in trainers.items() if not trainer.missing}
        for _ in range(given.rounds):
            for name, trainer in there.items():
                trainer.run(2 if given.quick else 30 if name in TRAINERS[:2] else 8)
        for trainer in trainers.values():
            trainer.end()
    median = {name: statistics.median(trainer.rates) for name, trainer in there.items()}
    for name, value in median.items():
        print(f"{name:>14}  {value:>9,.0f} rows/s")
    ratio = {name: median["isthmus"] / value for name, value in median.items()}
    print(f"isthmus / bare loop: {ratio['bare loop']:.2f}")
    if "fuxictr" in ratio:
        print(f"isthmus / fuxictr (its LongCTR DIN on its npz loader): {ratio['fuxictr']:.1f} (at least {BAR:g})")
    if "torch-rechub" in ratio:
        print(f"isthmus / torch-rechub: {ratio['torch-rechub']:.1f}")
    for name, trainer in trainers.items():
        if trainer.missing:
            print(f"{name} cannot be had: {trainer.missing}")
    print(json.dumps({name: round(value) for name, value in median.items()}))
    if "fuxictr" in ratio and ratio["fuxictr"] < BAR and not given.quick:
        sys.exit(1)


if __name__ == "__main__":
    main()
