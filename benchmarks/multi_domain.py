"""Training multi-domain click models, beside torch-rechub's, Scenario-Wise-Rec's and a loop that only computes, in one run.

    python benchmarks/multi_domain.py [--threads 2] [--rounds 7] [--only mmoe ple] [--quick]

2M rows, 3 domains (60, 30, 10 %), 1M users, each there at least once, 300k items, eight fields of width 16 (user, city; item, category,
brand; hour, os; domain), batches of 4,096, experts 256 and 128, towers 64; loaders included.  Works:

    mmoe, ple, star, shared_bottom    one each; PLE with one level besides the last in Isthmus, one in all in the peers'
    mmoe_10m                          MMoE, 10M users, 12M rows
    mmoe_100                          MMoE, 100 domains; beside it the growth of each one's step from 3 domains

Isthmus trains as ``fit`` does: its loader, Adagrad on the rows a batch touches, AdamW for the rest, its allocator.  Its input here are the
eight fields and the product of user and item, without the histories that its models read otherwise: the peers have none.  "auto" is the
same with ``precision="auto"``: products in bfloat16 where the processor has them; the bars are for the faster of the two.  "compute only"
is the first one's network with batches in memory and large tables that stand still: what remains if reading and updating them were free.
The peers train with their own loaders and trainers, with dense Adam and with batch norm in every layer, their defaults; torch-rechub
has no multi-domain models, so its multi-task ones get every domain as a task with the same label.

Each trains in a process of its own; rounds are interleaved, those of mmoe and mmoe_100 with each other too, and the median is reported,
with the largest memory of each process, mapped files included, and what it holds at the end that is no file's.  The peers are put beside
the environment, into ``benchmarks/.peers``; a ratio to one that cannot be had is left out.  Fails below the bars printed.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import statistics
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from _peers import PEERS, RECHUB, Clock, Worker, clone, endless, install
from isthmus.allocator import keep_blocks
from isthmus.batch import Batch, Needs, Output
from isthmus.data import split
from isthmus.data.batches import Plan, batches
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.events import read_events
from isthmus.fit import in_half
from isthmus.layers.features import Inputs
from isthmus.layers.from_data import fill
from isthmus.layers.networks import make_network
from isthmus.layers.table import Table, optimisers
from isthmus.model import Model
from isthmus.schema import Field, Schema
from isthmus.stages import training
from isthmus.task import get_task

ROWS, USERS, ITEMS, DIM, BATCH = 2_000_000, 1_000_000, 300_000, 16, 4096
SIZES = {"city": 200, "category": 5_000, "brand": 1_000, "hour": 50, "os": 20}
HIDDEN, TOWER = (256, 128), (64,)
WORKS = {  # network, users, domains
    "mmoe": ("mmoe", USERS, 3),
    "mmoe_10m": ("mmoe", 10 * USERS, 3),
    "mmoe_100": ("mmoe", USERS, 100),
    "ple": ("ple", USERS, 3),
    "star": ("star", USERS, 3),
    "shared_bottom": ("shared_bottom", USERS, 3),
}
GROWTH_OF = ("mmoe", "mmoe_100")  # works whose steps are compared, in the same rounds
LIMIT = "compute only"
AUTO = "isthmus, auto"
OURS, PEER = ("isthmus", AUTO, LIMIT), ("torch-rechub", "scenario-wise-rec")
BARS = {"mmoe": 3.7, "mmoe_10m": 17.0, "ple": 3.0, "star": 3.0, "shared_bottom": 3.0}  # Isthmus over the best peer
COMPUTE, GROWTH, MEMORY = 0.9, 1.15, 1.3  # Isthmus over compute only; a step with 100 domains over one with 3; see ``judge``
SWR = ("scenario_wise_rec", "https://github.com/Xiaopengli1/Scenario-Wise-Rec", "167ea86")


def columns(users: int, items: int, domains: int, rows: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Codes from 0 of every field, and labels that depend on item, brand, user and domain."""
    rng = np.random.default_rng(0)

    def skewed(size: int) -> np.ndarray:
        return rng.permutation(size)[(rng.random(rows) ** 2 * size).astype(np.int64)]

    shares = np.array([0.6, 0.3, 0.1]) if domains == 3 else np.full(domains, 1 / domains)
    found = {"user": rng.permutation(np.concatenate([np.arange(users), skewed(users)[: rows - users]])), "item": skewed(items)}
    city, category, brand = (rng.integers(0, SIZES[name], n) for name, n in (("city", users), ("category", items), ("brand", items)))
    found |= {"city": city[found["user"]], "category": category[found["item"]], "brand": brand[found["item"]]}
    found |= {"hour": skewed(SIZES["hour"]), "os": skewed(SIZES["os"]), "domain_indicator": rng.choice(domains, rows, p=shares)}
    effect = {"item": 0.6, "brand": 0.4, "user": 0.5, "domain_indicator": 0.3}
    logit = sum(scale * rng.normal(size=int(found[name].max()) + 1)[found[name]] for name, scale in effect.items()) - 1
    return found, (rng.random(rows) < 1 / (1 + np.exp(-logit))).astype(np.float32)


def prepare(folder: Path, users: int, items: int, domains: int, rows: int) -> None:
    """The data as Isthmus reads it, and as the others do."""
    found, label = columns(users, items, domains, rows)
    for name, values in {**found, "label": label}.items():
        np.save(folder / f"{name}.npy", values)
    (folder / "sizes.json").write_text(json.dumps({"user": users, "item": items, **SIZES, "domain_indicator": domains}))
    frame = pl.DataFrame({name: found[name] for name in ("user", "item", "hour", "os")}).with_columns(
        domain=pl.Series([f"d{d:03}" for d in range(domains)])[found["domain_indicator"]], label=pl.Series(label)
    )

    def side(name: str, fields: tuple[str, ...]) -> pl.DataFrame:
        one, first = np.unique(found[name], return_index=True)
        return pl.DataFrame({name: one, **{field: found[field][first] for field in fields}})

    def kinds(*names: str) -> tuple[Field, ...]:
        return tuple(Field(name, "categorical") for name in names)

    events = read_events(
        frame,
        user="user",
        item="item",
        domain="domain",
        label="label",
        context=kinds("hour", "os"),
        users=side("user", ("city",)),
        user_id="user",
        user_fields=kinds("city"),
        items=side("item", ("category", "brand")),
        item_id="item",
        item_fields=kinds("category", "brand"),
    )
    encode(events, split.given(events, np.zeros(len(frame), np.uint8)), folder / "data")


class Plain(Model):
    """One of the library's networks over the fields alone."""

    needs = Needs(context=True)
    tasks = ("ctr",)

    def __init__(self, schema: Schema, network: str) -> None:
        super().__init__(schema)
        self.inputs = Inputs(schema, DIM, id_dropout=0.0, history=False)
        args: dict[str, Any] = {"hidden": HIDDEN, "tower": TOWER}
        if network == "ple":
            args |= {"levels": 1, "own": 1, "shared": 1}
        if network == "star":
            args = {"hidden": (*HIDDEN, *TOWER), "auxiliary": (32,)}
        self.network = make_network(network, len(schema.domains), self.inputs.width, 1, args)

    def forward(self, batch: Batch) -> Output:
        return Output(self.inputs.logit(self.network, batch))


def ours(name: str, network: str, folder: Path, clock: Clock) -> None:
    """Isthmus: its loader, network, loss and optimisers, as ``fit`` puts them together; of the limit what is computing."""
    frozen = name == LIMIT
    keep_blocks()
    dataset = Dataset.load(folder / "data")
    model = Plain(dataset.schema, network)
    fill(model, dataset)
    if frozen:
        for module in model.modules():
            if isinstance(module, Table) and module.sparse:
                module.weight.requires_grad_(False)
    found, _ = optimisers(model, 1e-3)
    epochs = (batches(dataset, "train", model.needs, Plan(BATCH), epoch=epoch) for epoch in itertools.count())
    stream: Iterable[Batch] = itertools.chain.from_iterable(epochs)
    if frozen:
        stream = itertools.cycle(list(itertools.islice(stream, 8)))
    loss_of, parameters = get_task("ctr").loss, list(model.parameters())
    half = name == AUTO and in_half("auto", torch.device("cpu"))
    training(model)
    for batch in stream:
        clock(len(batch), 1)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = loss_of(model, batch)["loss"]
        for p in parameters:
            p.grad = None
        loss.backward()
        for optimiser in found:
            optimiser.step()
        clock.learnt(loss)


class Counted:
    """A peer's loader without end, each batch told to the clock."""

    def __init__(self, loader: Iterable[Any], clock: Clock) -> None:
        self.loader, self.clock = loader, clock

    def __iter__(self) -> Iterator[Any]:
        for x, y in endless(self.loader):
            self.clock(len(y), 1)
            yield x, y


def noted(criterion: nn.Module, clock: Clock) -> None:
    """Tells the clock what a peer's loss is."""
    compute = criterion.forward

    def told(*args: Tensor) -> Tensor:
        clock.learnt(loss := compute(*args))
        return loss

    criterion.forward = told


def read(folder: Path) -> tuple[dict[str, np.ndarray], np.ndarray, dict[str, int]]:
    sizes = json.loads((folder / "sizes.json").read_text())
    return {name: np.load(folder / f"{name}.npy") for name in sizes}, np.load(folder / "label.npy"), sizes


def rechub(network: str, folder: Path, clock: Clock) -> None:
    """torch-rechub's multi-task models, through its own loader and trainer."""
    install("torch_rechub", RECHUB)
    from torch_rechub.basic.features import SparseFeature  # pyright: ignore
    from torch_rechub.models.multi_task import MMOE, PLE, SharedBottom  # pyright: ignore
    from torch_rechub.trainers import MTLTrainer  # pyright: ignore
    from torch_rechub.utils.data import DataGenerator  # pyright: ignore

    x, y, sizes = read(folder)
    domains = sizes["domain_indicator"]
    features = [SparseFeature(name, vocab_size=size, embed_dim=DIM) for name, size in sizes.items()]
    tasks, towers, experts = ["classification"] * domains, [{"dims": list(TOWER)}] * domains, {"dims": list(HIDDEN)}
    if network == "mmoe":
        model = MMOE(features, tasks, 4, expert_params=experts, tower_params_list=towers)
    elif network == "ple":
        model = PLE(features, tasks, 1, 1, 1, expert_params=experts, tower_params_list=towers)
    elif network == "shared_bottom":
        model = SharedBottom(features, tasks, bottom_params=experts, tower_params_list=towers)
    else:
        raise ImportError(f"it has no {network}")
    labels, few = np.repeat(y[:, None], domains, 1), {name: values[:9] for name, values in x.items()}
    trainer = MTLTrainer(model, tasks)
    noted(trainer.loss_fns[0], clock)
    loader, *_ = DataGenerator(x, labels).generate_dataloader(few, labels[:9], few, labels[:9], batch_size=BATCH, num_workers=0)
    with contextlib.redirect_stderr(io.StringIO()):
        trainer.train_one_epoch(Counted(loader, clock))


def scenario_wise_rec(network: str, folder: Path, clock: Clock) -> None:
    """Scenario-Wise-Rec's multi-domain models, through its own loader and trainer."""
    clone(*SWR)
    install("pandas", ("pandas==2.3.3", "pytz", "tqdm"), PEERS / "for_scenario_wise_rec")
    from scenario_wise_rec.basic.features import SparseFeature  # pyright: ignore
    from scenario_wise_rec.models.multi_domain import MMOE, PLE, SharedBottom, Star  # pyright: ignore
    from scenario_wise_rec.trainers import CTRTrainer  # pyright: ignore
    from scenario_wise_rec.utils.data import DataGenerator  # pyright: ignore

    x, y, sizes = read(folder)
    domains = sizes["domain_indicator"]
    features = [SparseFeature(name, vocab_size=size, embed_dim=DIM) for name, size in sizes.items()]
    experts, tower = {"dims": list(HIDDEN)}, {"dims": list(TOWER)}
    if network == "mmoe":
        model = MMOE(features, domains, n_expert=4, expert_params=experts, tower_params=tower)
    elif network == "ple":
        counts = {"n_level": 1, "n_expert_specific": 1, "n_expert_shared": 1}
        model = PLE(features, domains, expert_params=experts, tower_params=tower, **counts)
    elif network == "star":
        model = Star(features, domains, fcn_dims=[*HIDDEN, *TOWER], aux_dims=[32])
    else:
        model = SharedBottom(features, domains, bottom_params=experts, tower_params=tower)
    trainer, few = CTRTrainer(model, "synthetic"), {name: values[:9] for name, values in x.items()}
    noted(trainer.criterion, clock)
    loader, *_ = DataGenerator(x, y).generate_dataloader(few, y[:9], few, y[:9], batch_size=BATCH, num_workers=0)
    with contextlib.redirect_stderr(io.StringIO()):
        trainer.train_one_epoch(Counted(loader, clock))


def serve(work: str, name: str, folder: Path) -> None:
    """One trainer, in a process of its own."""
    network, clock = WORKS[work][0], Clock(5)
    try:
        if name == "torch-rechub":
            rechub(network, folder, clock)
        elif name == "scenario-wise-rec":
            scenario_wise_rec(network, folder, clock)
        else:
            ours(name, network, folder, clock)
    except ImportError as error:
        print(error, file=clock.out, flush=True)


def begun(work: str, folder: Path, given: argparse.Namespace) -> dict[str, Worker]:
    """All trainers of a work."""
    network, users, domains = WORKS[work]
    shrink = 100 if given.quick else 1
    print(f"training {work}: {network}, {users // shrink:,} users, {domains} domains", flush=True)
    prepare(folder, users // shrink, ITEMS // shrink, domains, max(ROWS // shrink, users // shrink * 6 // 5, 8 * BATCH))
    command = [sys.executable, __file__, "--threads", str(given.threads), "--work", work, "--data", str(folder), "--trainer"]
    workers = {}
    for name in OURS + PEER:
        workers[name] = Worker([*command, name], folder / f"{name}.txt")
        if name == "isthmus" and workers[name].missing:
            sys.exit(f"{name}: {workers[name].missing}")
    return workers


def compare(works: Sequence[str], given: argparse.Namespace) -> dict[str, dict[str, Worker]]:
    """All trainers of some works, in rounds that go through all of them."""
    with contextlib.ExitStack() as stack:
        trainers = {work: begun(work, Path(stack.enter_context(tempfile.TemporaryDirectory())), given) for work in works}
        for _ in range(given.rounds):
            for work, name, worker in ((work, name, one) for work, workers in trainers.items() for name, one in workers.items()):
                if not worker.missing:
                    own = name in OURS
                    worker.run((4 if own else 2) if given.quick else 40 if own else 3 if work == "mmoe_10m" else 10)
        for worker in (one for workers in trainers.values() for one in workers.values()):
            worker.end()
    return trainers


def report(work: str, workers: dict[str, Worker]) -> dict[str, dict[str, float]]:
    """Prints a work's table; rows per second and memory of each trainer."""
    there = {name: worker.rounds for name, worker in workers.items() if not worker.missing}
    found = {
        name: {
            "rows/s": statistics.median(told["rate"] for told in rounds[1:]),
            "MiB": max(told["memory"] for told in rounds),
            "own": rounds[-1]["own"],
        }
        for name, rounds in there.items()
    }
    print(f"\n{work}:")
    print("                        rows/s   isthmus /      MiB   its own   loss, first and last")
    for name, facts in found.items():
        ratio, rounds = found["isthmus"]["rows/s"] / facts["rows/s"], there[name]
        loss = f"{rounds[0]['loss']:.3f} {rounds[-1]['loss']:.3f}"
        print(f"{name:>17}  {facts['rows/s']:>11,.0f}  {ratio:>10.2f}  {facts['MiB']:>7,.0f}  {facts['own']:>8,.0f}   {loss}")
    for name, worker in workers.items():
        if worker.missing:
            print(f"{name} cannot be had: {worker.missing}")
    return found


def judge(found: dict[str, dict[str, dict[str, float]]]) -> list[str]:
    """The bars that are missed, each in a line; prints all of them."""
    told: list[tuple[str, bool]] = []
    for work, facts in found.items():
        rate = {name: one["rows/s"] for name, one in facts.items()}
        peers = [rate[name] for name in PEER if name in rate]
        if peers and work in BARS:
            ratios = [rate[name] / max(peers) for name in ("isthmus", AUTO)]
            line = f"{work}: {ratios[0]:.1f} times the best peer, with precision auto {ratios[1]:.1f} (at least {BARS[work]:g})"
            told.append((line, max(ratios) >= BARS[work]))
        if work == "mmoe":
            share = rate["isthmus"] / rate[LIMIT]
            told.append((f"{work}: {share:.2f} of {LIMIT} (at least {COMPUTE:g})", share >= COMPUTE))
    if found.keys() >= set(GROWTH_OF):
        few, many = (found[work] for work in GROWTH_OF)
        for name in sorted(few.keys() & many.keys()):
            growth = few[name]["rows/s"] / many[name]["rows/s"]
            bar = f" (at most {GROWTH:g})" if name == "isthmus" else ""
            told.append(
                (f"{name}: a step with 100 domains takes {growth:.2f} times one with 3{bar}", name != "isthmus" or growth <= GROWTH)
            )
    if {"mmoe", "mmoe_10m"} <= found.keys():
        tables = 9 * USERS * (DIM + 1) * 4 / 2**20  # vectors and row-wise Adagrad's sums
        for name in sorted(found["mmoe"].keys() & found["mmoe_10m"].keys() - {LIMIT, AUTO}):
            more = found["mmoe_10m"][name]["own"] - found["mmoe"][name]["own"]
            bar = f" (at most {MEMORY:g})" if name == "isthmus" else ""
            line = f"{name}: 9M more users take {more:,.0f} MiB, {more / tables:.2f} times their table and its optimiser's state{bar}"
            told.append((line, name != "isthmus" or more <= MEMORY * tables))
    print()
    for line, _ in told:
        print(line)
    return [line for line, fine in told if not fine]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=WORKS, default=list(WORKS), help="these works alone")
    parser.add_argument("--quick", action="store_true", help="a hundredth of the size, few steps, and no bar: does it run?")
    parser.add_argument("--out", type=Path, help="a file for the numbers, as JSON")
    for name, kind in (("--work", str), ("--trainer", str), ("--data", Path)):
        parser.add_argument(name, type=kind, help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    if given.trainer:
        serve(given.work, given.trainer, given.data)
        return
    pair = [work for work in GROWTH_OF if work in given.only]
    groups = [group for group in (pair, *([work] for work in given.only if work not in pair)) if group]
    found = {work: report(work, workers) for group in groups for work, workers in compare(group, given).items()}
    missed = judge(found)
    print(
        text := json.dumps(
            {work: {name: {k: round(v) for k, v in one.items()} for name, one in facts.items()} for work, facts in found.items()}
        )
    )
    if given.out is not None:
        given.out.write_text(text + "\n")
    if missed and not given.quick:
        sys.exit("missed: " + "; ".join(missed))


if __name__ == "__main__":
    main()
