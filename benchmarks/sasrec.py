"""Training SASRec, beside RecTools', torch-rechub's, RecBole's and a bare PyTorch loop on the same sequences, in one run.

    python benchmarks/sasrec.py [--threads 2] [--rounds 3] [--only bce softmax] [--quick]

50,000 users, 20,000 items, width 64, 2 blocks of 2 heads, networks of 64, dropout .2, up to 50 places, 256 sequences a step; loaders
included.  A sequence is all that a user did, at most 51 events: longer ones are cut before anybody gets them, so that each user is one
sequence for all.  Three works:

    bce       lengths by a gamma law of mean 50, about 38 after the cut; one negative for each target.  At least 1.35 times RecTools.
    softmax   the same; 128 negatives: shared by all of a step, drawn by popularity and corrected by log Q, in Isthmus and (uniform) in
              the bare loop, for each target its own in RecTools' ``sampled_softmax``.  At least 9 times RecTools.
    uneven    bce; lengths by a log-normal law of median 7, mean about 10: the lengths of reviews.  At least 3 times RecTools.

Isthmus sorts windows by length; "isthmus, unsorted" takes them as they come, which pads nearly every batch to the longest.  It counts
a step in events: here as many as 256 sequences have on average.  It also asks for each user's first event, which the others cannot: one
target more per sequence.  The others pad to 50 places.  torch-rechub has no such loss: it trains BPR, and its outputs
are flattened to the real places, without which its trainer stops.  RecBole makes a sequence of every beginning of one and trains its
last place alone (BPR, or a softmax over all items): one target, where the others have 37.  The bare loop is compute alone: its batches
lie in memory, padded.
Losses are each one's own (RecTools takes the mean of a target and its negative, Isthmus their sum): they fall, but do not compare.

Each trains in a process of its own, as it comes: Isthmus keeps freed memory for the next step (``isthmus.allocator``), the others do
not.  Rounds are interleaved; the median is reported, as JSON too (``--out`` writes it to a file).  The peers are installed beside the
environment, into ``benchmarks/.peers``; a ratio to one that cannot be had is left out.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from _peers import PEERS, RECBOLE, RECHUB, RECTOOLS, Clock, Worker, endless, install
from isthmus.allocator import keep_blocks
from isthmus.data import sequences, split
from isthmus.data.batches import Plan
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.events import read_events
from isthmus.data.windows import WindowBatches
from isthmus.layers.from_data import fill
from isthmus.layers.table import optimisers
from isthmus.run import build
from isthmus.stages import training
from isthmus.task import get_task

USERS, ITEMS, LENGTH, BATCH = 50_000, 20_000, 50, 256
DIM, BLOCKS, HEADS, DROPOUT, NEGATIVES = 64, 2, 2, 0.2, 128
TRAINERS = {
    "bce": ("isthmus", "bare loop", "rectools", "torch-rechub", "recbole"),
    "softmax": ("isthmus", "bare loop", "rectools", "recbole"),
    "uneven": ("isthmus", "isthmus, unsorted", "bare loop", "rectools"),
}
STEPS = 2 * sequences.GROUP  # of a round: windows of all lengths, each as often as it comes
BARS = {"bce": 1.35, "softmax": 9.0, "uneven": 3.0}  # Isthmus over RecTools


class Log:
    """Every user's events, in order.

    Args:
        lengths: events of each user.
        items: how many there are; the k-th most popular one has a share ~ 1 / k.
    """

    def __init__(self, lengths: np.ndarray, items: int, rng: np.random.Generator) -> None:
        self.lengths, self.items = lengths, items
        self.user = np.repeat(np.arange(len(lengths)), lengths)
        rank = (items ** rng.random(len(self.user))).astype(np.int64)
        self.item = rng.permutation(items)[np.minimum(rank, items) - 1] + 1

    @classmethod
    def make(cls, work: str, users: int, items: int) -> Log:
        """Of one of the works."""
        rng = np.random.default_rng(0)
        if work == "uneven":
            lengths = np.maximum(np.rint(rng.lognormal(np.log(7), 0.845, users)).astype(np.int64), 2)
        else:
            lengths = np.maximum(rng.gamma(2.0, 22.5, users).astype(np.int64) + 5, 5)
        return cls(np.minimum(lengths, LENGTH + 1), items, rng)

    def dataset(self, folder: Path) -> Dataset:
        """As Isthmus reads it."""
        n = len(self.user)
        frame = pl.DataFrame({"user": self.user, "item": self.item, "domain": np.full(n, "all"), "time": np.arange(n)})
        events = read_events(frame, user="user", item="item", domain="domain", time="time", time_unit="step")
        return encode(events, split.given(events, np.zeros(n, np.uint8)), folder)

    def padded(self) -> np.ndarray:
        """(users, 51) int64, from slot 0 on; 0 pads."""
        found = np.zeros((len(self.lengths), LENGTH + 1), np.int64)
        found[np.arange(LENGTH + 1) < self.lengths[:, None]] = self.item
        return found


def ours(work: str, log: Log, dataset: Dataset, clock: Clock) -> None:
    """Isthmus: its windows, model, loss and optimisers, as ``fit`` puts them together."""
    keep_blocks()
    settings: dict[str, Any] = {"dim": DIM, "blocks": BLOCKS, "heads": HEADS, "length": LENGTH + 1, "dropout": DROPOUT}
    model = build("sasrec", dataset.schema, settings)
    fill(model, dataset)
    found, _ = optimisers(model, 1e-3)
    drawn: dict[str, Any] = {"sampler": "drawn", "negatives": NEGATIVES} if work == "softmax" else {"sampler": "uniform", "negatives": 1}
    plan = Plan(round(BATCH * log.lengths.mean()), history_length=LENGTH + 1, **drawn)
    windows = WindowBatches(dataset, model.needs, plan)
    loss = get_task("next_item").with_objective("softmax" if work == "softmax" else "bce").loss
    training(model)
    for batch in (batch for epoch in itertools.count() for batch in windows.epoch(epoch)):
        assert batch.target is not None
        clock(len(batch.user), len(batch.target.item))
        total = torch.stack(list(loss(model, batch).values())).sum()
        update(found, total)
        clock.learnt(total)


def update(found: Iterable[torch.optim.Optimizer], loss: Tensor) -> None:
    """Backward, and a step of all optimisers."""
    for optimiser in found:
        optimiser.zero_grad(set_to_none=True)
    loss.backward()
    for optimiser in found:
        optimiser.step()


class Block(nn.Module):
    """The bare loop's block."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.project, self.out = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.network = nn.Sequential(nn.Linear(DIM, DIM), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(DIM, DIM), nn.Dropout(DROPOUT))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.project(self.first(x)).view(*x.shape[:2], 3, HEADS, -1).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(query, key, value, dropout_p=DROPOUT, is_causal=True)
        x = x + F.dropout(self.out(seen.transpose(1, 2).reshape(x.shape)), DROPOUT)
        return x + self.network(self.second(x))


class Network(nn.Module):
    """The bare loop's SASRec: padding stands behind a sequence's end, so that a causal mask is enough."""

    def __init__(self, items: int) -> None:
        super().__init__()
        self.item, self.place = nn.Embedding(items + 1, DIM, sparse=True), nn.Parameter(torch.randn(LENGTH, DIM) * 0.02)
        nn.init.normal_(self.item.weight, 0, 0.02)
        self.blocks = nn.Sequential(nn.Dropout(DROPOUT), *(Block() for _ in range(BLOCKS)), nn.LayerNorm(DIM))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.item(x) + self.place)


def bare(work: str, log: Log, clock: Clock) -> None:
    """PyTorch alone, batches in memory, lazy Adam for the table."""
    model = Network(log.items)
    rest = [p for p in model.parameters() if p is not model.item.weight]
    found = [torch.optim.SparseAdam([model.item.weight], lr=1e-3), torch.optim.Adam(rest, fused=True)]
    order = torch.randperm(len(log.lengths))
    stream = itertools.cycle([rows for rows in torch.from_numpy(log.padded())[order].split(BATCH) if len(rows) == BATCH])
    for rows in stream:
        there = rows[:, 1:] > 0
        target = rows[:, 1:][there]
        clock(len(rows), len(target))
        state = model(rows[:, :-1])[there]
        right = (state * model.item(target)).sum(1)
        if work == "softmax":
            wrong = state @ model.item(torch.randint(1, log.items + 1, (NEGATIVES,))).T
            loss = (torch.logaddexp(right, wrong.logsumexp(1)) - right).mean()
        else:
            wrong = (state * model.item(torch.randint(1, log.items + 1, target.shape))).sum(1)
            loss = (F.softplus(-right) + F.softplus(wrong)).mean()
        update(found, loss)
        clock.learnt(loss)


def rectools(work: str, log: Log, clock: Clock) -> None:
    """RecTools' SASRec: one ``fit``, which a callback stops between rounds."""
    install("rectools", RECTOOLS, PEERS / "for_rectools")  # it wants an older pandas
    import pandas as pd
    import pytorch_lightning as lightning  # pyright: ignore
    from rectools import Columns  # pyright: ignore
    from rectools.dataset import Dataset as Interactions  # pyright: ignore
    from rectools.models import SASRecModel  # pyright: ignore

    class Rounds(lightning.Callback):
        """Copied with its trainer: the clock must be no attribute."""

        def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: dict[str, Tensor], batch_idx: int) -> None:
            clock(len(batch["x"]), int((batch["y"] > 0).sum()))

        def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: dict[str, Tensor], batch_idx: int) -> None:
            clock.learnt(outputs["loss"])

    def trainer() -> Any:
        quiet = {"enable_checkpointing": False, "logger": False, "enable_model_summary": False, "enable_progress_bar": False}
        return lightning.Trainer(max_epochs=-1, accelerator="cpu", callbacks=[Rounds()], **quiet)

    time = pd.Timestamp("2024-01-01") + pd.to_timedelta(np.arange(len(log.user)), unit="s")
    frame = pd.DataFrame({Columns.User: log.user, Columns.Item: log.item, Columns.Weight: 1.0, Columns.Datetime: time})
    model = SASRecModel(
        n_factors=DIM,
        n_blocks=BLOCKS,
        n_heads=HEADS,
        dropout_rate=DROPOUT,
        session_max_len=LENGTH,
        batch_size=BATCH,
        loss="sampled_softmax" if work == "softmax" else "BCE",
        n_negatives=NEGATIVES if work == "softmax" else 1,
        get_trainer_func=trainer,
    )
    model.fit(Interactions.construct(frame))


def recbole(work: str, log: Log, folder: Path, clock: Clock) -> None:
    """RecBole's SASRec, through its own loader and trainer."""
    install("recbole", RECBOLE, PEERS / "for_recbole")
    for name, now in (("float_", np.float64), ("complex_", np.complex128), ("unicode_", np.str_)):
        setattr(np, name, now)  # names that numpy 2 has no more
    from recbole.config import Config  # pyright: ignore
    from recbole.data import create_dataset, data_preparation  # pyright: ignore
    from recbole.utils import get_model, get_trainer  # pyright: ignore

    os.chdir(folder)  # it writes into the folder it is started in
    sys.argv = sys.argv[:1]  # and reads the command line
    (folder / "log").mkdir(exist_ok=True)
    frame = pl.DataFrame({"user_id:token": log.user, "item_id:token": log.item, "timestamp:float": np.arange(len(log.user))})
    frame.write_csv(folder / "log" / "log.inter", separator="\t")
    softmax = work == "softmax"
    settings: dict[str, Any] = {
        "data_path": str(folder),
        "load_col": {"inter": ["user_id", "item_id", "timestamp"]},
        "MAX_ITEM_LIST_LENGTH": LENGTH,
        **{"hidden_size": DIM, "inner_size": DIM, "n_layers": BLOCKS, "n_heads": HEADS},
        **{"hidden_dropout_prob": DROPOUT, "attn_dropout_prob": DROPOUT, "train_batch_size": BATCH},
        "loss_type": "CE" if softmax else "BPR",
        "train_neg_sample_args": None if softmax else {"distribution": "uniform", "sample_num": 1, "alpha": 1.0, "dynamic": False},
        **{"use_gpu": False, "show_progress": False},
    }
    config = Config(model="SASRec", dataset="log", config_dict=settings)
    loader, _, _ = data_preparation(config, dataset := create_dataset(config))
    model = get_model("SASRec")(config, dataset)
    compute = model.calculate_loss

    def told(batch: Any) -> Tensor:
        clock.learnt(loss := compute(batch))
        return loss

    def counted() -> Iterator[Any]:
        for batch in endless(loader):
            clock(len(batch), len(batch))
            yield batch

    model.calculate_loss = told
    get_trainer(config["MODEL_TYPE"], config["model"])(config, model)._train_epoch(counted(), 0)


class Counted:
    """torch-rechub's loader without end, each batch told to the clock."""

    def __init__(self, loader: Iterable[Any], clock: Clock) -> None:
        self.loader, self.clock = loader, clock

    def __iter__(self) -> Iterator[Any]:
        for x, y in endless(self.loader):
            self.clock(len(y), int((x["pos"] > 0).sum()))
            yield x, y


def rechub(log: Log, clock: Clock) -> None:
    """torch-rechub's SASRec, through its own loader and trainer."""
    install("torch_rechub", RECHUB)
    from torch_rechub.basic.features import SequenceFeature  # pyright: ignore
    from torch_rechub.models.matching import SASRec  # pyright: ignore
    from torch_rechub.trainers import MatchTrainer  # pyright: ignore
    from torch_rechub.utils.data import MatchDataGenerator  # pyright: ignore

    class Flat(SASRec):
        """Its scores at real places alone: its trainer's loss takes no table of them."""

        def forward(self, x: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            right, wrong = super().forward(x)
            return right[x["pos"] > 0], wrong[x["pos"] > 0]

    rows, rng = log.padded(), np.random.default_rng(1)
    right = rows[:, 1:].copy()
    x = {"seq": rows[:, :-1].copy(), "pos": right, "neg": np.where(right > 0, rng.integers(1, log.items + 1, right.shape), 0)}
    shared = {"vocab_size": log.items + 1, "embed_dim": DIM, "pooling": "concat"}
    features = [SequenceFeature("seq", **shared), *(SequenceFeature(name, shared_with="seq", **shared) for name in ("pos", "neg"))]
    model = Flat(features, max_len=LENGTH, dropout_rate=DROPOUT, num_blocks=BLOCKS, num_heads=HEADS)
    trainer = MatchTrainer(model, mode=1)
    learn = trainer.criterion.forward

    def told(*scores: Tensor) -> Tensor:
        clock.learnt(loss := learn(*scores))
        return loss

    trainer.criterion.forward = told
    few = {name: values[:9] for name, values in x.items()}
    loader, _, _ = MatchDataGenerator(x, np.zeros(len(rows), np.int64)).generate_dataloader(few, few, batch_size=BATCH, num_workers=0)
    with contextlib.redirect_stderr(io.StringIO()):
        trainer.train_one_epoch(Counted(loader, clock))


def serve(work: str, name: str, folder: Path) -> None:
    """One trainer, in a process of its own: how the memory of one is kept must not help another."""
    log, clock = Log.make(work, **json.loads((folder / "size.json").read_text())), Clock(sequences.GROUP if name == "isthmus" else 3)
    try:
        if name == "isthmus, unsorted":
            sequences.GROUP = 1  # windows are sorted within a step alone
        if name.startswith("isthmus"):
            ours(work, log, Dataset.load(folder / "data"), clock)
        elif name == "bare loop":
            bare(work, log, clock)
        elif name == "rectools":
            rectools(work, log, clock)
        elif name == "recbole":
            recbole(work, log, folder, clock)
        else:
            rechub(log, clock)
    except ImportError as error:
        print(error, file=clock.out, flush=True)


def steps(work: str, name: str, quick: bool) -> int:
    """Of a round."""
    if name == "isthmus":
        return sequences.GROUP if quick else STEPS
    return 2 if quick else 5 if (work, name) == ("softmax", "rectools") else STEPS


def compare(work: str, size: dict[str, int], given: argparse.Namespace) -> dict[str, Worker]:
    """All trainers of a work, in rounds."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        log = Log.make(work, **size)
        log.dataset(folder / "data")
        (folder / "size.json").write_text(json.dumps(size))
        print(f"\n{work}: {size['users']:,} users, {size['items']:,} items, {log.lengths.mean():.1f} events of a user", flush=True)
        command = [sys.executable, __file__, "--threads", str(given.threads), "--work", work, "--data", temporary, "--trainer"]
        workers: dict[str, Worker] = {}
        for name in TRAINERS[work]:
            workers[name] = Worker([*command, name], folder / f"{name}.txt")
            if name.startswith("isthmus") and workers[name].missing:
                sys.exit(f"{name}: {workers[name].missing}")
        for _ in range(given.rounds):
            for name, worker in workers.items():
                if not worker.missing:
                    worker.run(steps(work, name, given.quick))
        for worker in workers.values():
            worker.end()
    return workers


def report(work: str, workers: dict[str, Worker]) -> tuple[dict[str, Any], bool]:
    """Prints the table of a work; its numbers, and whether Isthmus is as fast as it has to be."""
    there = {name: worker.rounds for name, worker in workers.items() if not worker.missing}
    rate = {name: statistics.median(told["rate"] for told in rounds[1:]) for name, rounds in there.items()}
    print("                   sequences/s   isthmus /   targets of one   loss, first and last")
    for name, rounds in there.items():
        ratio, targets = rate["isthmus"] / rate[name], statistics.mean(told["targets"] for told in rounds[1:])
        print(f"{name:>17}  {rate[name]:>12,.0f}  {ratio:>10.2f}  {targets:>15.1f}  {rounds[0]['loss']:>14.3f} {rounds[-1]['loss']:.3f}")
    for name, worker in workers.items():
        if worker.missing:
            print(f"{name} cannot be had: {worker.missing}")
    enough = "rectools" not in rate or rate["isthmus"] >= BARS[work] * rate["rectools"]
    if "rectools" in rate:
        print(f"isthmus / rectools: {rate['isthmus'] / rate['rectools']:.2f} (at least {BARS[work]:g})", flush=True)
    return {name: round(value) for name, value in rate.items()}, enough


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=TRAINERS, default=list(TRAINERS), help="these works alone")
    parser.add_argument("--quick", action="store_true", help="a tenth of the size, few steps, and no bar: does it run?")
    parser.add_argument("--out", type=Path, help="a file for the numbers, as JSON")
    for name, kind in (("--work", str), ("--trainer", str), ("--data", Path)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    if given.trainer:
        serve(given.work, given.trainer, given.data)
        return
    shrink, found, enough = 10 if given.quick else 1, dict[str, Any](), True
    for work in given.only:
        found[work], fast = report(work, compare(work, {"users": USERS // shrink, "items": ITEMS // shrink}, given))
        enough = enough and fast
    print(text := json.dumps(found))
    if given.out is not None:
        given.out.write_text(text + "\n")
    if not enough and not given.quick:
        sys.exit(1)


if __name__ == "__main__":
    main()
