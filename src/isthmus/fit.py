"""``fit``: the one training loop.  Stages, epochs, batches; early stop on validation; checkpoints; resume.

On a CPU an interrupted and resumed run equals an uninterrupted one bit for bit: a batch depends on (seed, epoch,
step) alone, and a checkpoint holds everything else that moves.

Under ``torchrun`` several processes train one model together, see ``isthmus.ranks``.
"""

from __future__ import annotations

import math
import os
import sys
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor, nn

from isthmus import metrics
from isthmus.allocator import keep_blocks
from isthmus.batch import Batch
from isthmus.checkpoint import UNSPLIT, Checkpoint, Optimisers, load_tensors
from isthmus.data.batches import Plan, batches, steps
from isthmus.data.dataset import Dataset
from isthmus.data.pools import POOLED
from isthmus.data.windows import WindowBatches
from isthmus.errors import CheckpointError, ConfigError, FitError
from isthmus.how import How
from isthmus.layers.from_data import fill
from isthmus.layers.losses import ALIKE
from isthmus.layers.table import optimisers as make_optimisers
from isthmus.measure import measure
from isthmus.model import Model, Retriever, Sequential, Stage
from isthmus.progress import Bar, Board, Hold, holding
from isthmus.ranks import Ranks
from isthmus.run import Best, Keeper, Run, State, build, facts_of, load_run, read_facts, rebuild, seeded
from isthmus.score import score
from isthmus.shards import Shards
from isthmus.stages import Adaptation, drop_other_rows, only, training
from isthmus.task import Task, default_task, get_task

__all__ = ["Best", "How", "Run", "build", "fit", "load_run", "resume"]

Values = dict[str, dict[str, float]]  # metric -> "all" and domain names -> value

FULL_CATALOGUE = 4_000  # items; up to here a full softmax costs about as much as a drawn one
SHARED = 1024  # negatives of a domain in a step, beside those of the batch
MOVED = 0.98  # a loss above this share of it has hardly moved
FLUSH = 32  # losses are read once in so many steps: reading one waits for the device


def fit(
    model: Model,
    dataset: Dataset,
    task: Task,
    how: How | None = None,
    out: str | Path | None = None,
    *,
    resume: bool = False,
    adaptation: Adaptation | None = None,
) -> Run:
    """Trains a model; the best weights on validation win (or the last, see ``How.keep``).

    Started by ``torchrun`` on several processes, each computes its part of every batch of ``How.batch_size``; the outcome is
    that of one process but for rounding and for what looks at a whole batch at once or draws at random (norms, dropout).  With
    ``How.sharded`` they split the large tables among them: the model that comes back is whole again, and on the CPU.

    Every stage with epochs stops early by itself, on the mean over its domains of the metric watched.  Where there
    are no validation rows it runs all its epochs and keeps the last weights.

    Args:
        model: trained in place, from the weights that it has.
        dataset: encoded; its parts ``train`` and ``valid`` are read.
        task: what to learn.
        how: settings; None: the defaults.
        out: folder of the run; None: nothing is written, and nothing can be resumed.
        resume: go on from the folder's newest checkpoint.  A finished run is just read; an empty folder starts anew.
        adaptation: train a grown model for its new domains alone, see ``isthmus.adapt``; what it took from the data stays.

    Returns:
        The finished run.

    Raises:
        ConfigError: model, data set and task do not go together, or a setting is impossible.
        CheckpointError: the folder's run was made from other data or settings, or is damaged.
        StorageError: the folder holds a run and ``resume`` is False, or cannot be written.
        FitError: the loss is not a number.
        KeyboardInterrupt: Ctrl-C; a checkpoint was written first.
    """
    how = how or How()
    learnt = task.with_absolute_error(how.absolute_error).with_objective(how.objective)
    stages = partial(Adaptation.stages, adaptation, model) if adaptation else model.stages
    check(model, dataset, task, how, out, stages())
    device = pick_device(how.device)
    ranks = Ranks.join(device)
    split = how.sharded and ranks.size > 1
    folder = None if out is None else Path(out)
    keeper = Keeper(folder, ranks.first)
    found = _open(keeper, folder, ranks, facts_of(model, dataset, task, how, adaptation), resume)
    if folder is not None and ranks.told(lambda: keeper.finished):
        return load_run(folder, model if split else model.to(device))
    state = State() if found is None else State.from_dict(found.state)
    keep_blocks()
    with seeded(how.seed, device), _threads(how.threads), holding() as hold, Bar(how.progress and ranks.first) as bar:
        board = Board(folder if how.tensorboard and ranks.first else None, len(state.log))
        if adaptation is None:
            fill(model, dataset)
        shards = Shards.split(model, ranks) if split else Shards(ranks)
        model.to(device)
        if found is not None:
            found.restore(model, shards)
        ranks.align(model, shards)
        work = _Work(model, dataset, learnt, how, device, in_half(how.precision, device), ranks, shards, keeper, hold, bar, board, state)
        try:
            best = _train(work, stages(), found)
        except KeyboardInterrupt:
            work.interrupted()
            raise
    ranks.told(lambda: keeper.finish(best))  # nobody leaves before all is written
    if split:
        shards.unite(model, None if folder is None else load_tensors(folder / "model.safetensors"))
    return Run(model.eval(), task, how, best, state.log, folder)


def resume(folder: str | Path, dataset: Dataset, model: Model | None = None) -> Run:
    """Goes on with an interrupted run, from its folder alone.

    Args:
        folder: of the run.
        dataset: the one it was trained on.
        model: needed only when its class does not lie in ``isthmus.models``.

    Raises:
        CheckpointError: not a run's folder, or of another data set; an adaptation that was interrupted before its first checkpoint.
    """
    facts, adaptation = read_facts(folder := Path(folder)), None
    if raw := facts.get("adaptation"):
        adaptation = Adaptation(tuple(raw["domains"]), tuple(raw["items"]))
        if Checkpoint.latest(folder) is None and not Keeper(folder).finished:
            came = f"the adaptation in {folder} has no checkpoint yet"
            raise CheckpointError(came, "the trained model that it began with", "adapt again, with resume=True (isthmus adapt --resume)")
    task, how = get_task(facts["task"]), How.of(facts["how"])
    return fit(model or rebuild(facts), dataset, task, how, folder, resume=True, adaptation=adaptation)


def _open(keeper: Keeper, folder: Path | None, ranks: Ranks, facts: dict[str, Any], resume: bool) -> Checkpoint | None:
    """Where to go on: rank 0 looks and the others read the same checkpoint.

    Raises:
        CheckpointError: a rank that does not see the folder of rank 0.
    """
    opened: list[Checkpoint | None] = []

    def name() -> str | None:
        opened.append(found := keeper.open(facts, resume))
        return None if found is None else found.folder.name

    newest = ranks.told(name)
    if ranks.first or newest is None or folder is None:
        return opened[0] if opened else None
    found = Checkpoint.latest(folder)
    if found is None or found.folder.name != newest:
        raise CheckpointError(f"rank {ranks.rank} finds no {newest} in {folder}", "a folder that all ranks share", "resume there")
    return found


@dataclass
class _Work:
    """All that the loop holds."""

    model: Model
    dataset: Dataset
    task: Task
    how: How
    device: torch.device
    half: bool  # products in bfloat16
    ranks: Ranks
    shards: Shards
    keeper: Keeper
    hold: Hold
    bar: Bar
    board: Board
    state: State
    optimisers: Optimisers = field(default_factory=list)
    pending: list[dict[str, Tensor]] = field(default_factory=list)  # losses not yet read, one entry per step
    late: bool = False  # a checkpoint is due
    halfway: bool = False  # a closed form is at work: the weights are neither the old nor the new ones
    saved: float = field(default_factory=time.monotonic)  # when the last checkpoint was written

    def save(self) -> None:
        """Writes a checkpoint of this very moment."""
        self.read_losses()
        self.keeper.save(self.state, self.model, self.optimisers, self.shards)
        self.saved = time.monotonic()

    def read_losses(self) -> None:
        """Adds the losses not yet read to the epoch's sums.

        Raises:
            FitError: one is not a number.
        """
        pending, self.pending = self.pending, []
        if not pending:
            return
        values = iter(self.ranks.sum(torch.stack([loss for losses in pending for loss in losses.values()])).tolist())
        for back, losses in enumerate(pending):
            named = {name: next(values) for name in losses}
            if not math.isfinite(named["total"]):
                raise _not_a_number(self.state, self.state.step - len(pending) + back, named, self.how)
            for name, value in named.items():
                self.state.losses[name] = self.state.losses.get(name, 0.0) + value

    def interrupted(self) -> None:
        """Ctrl-C: keeps where we are, and tells how to go on."""
        if self.keeper.folder is None or not self.ranks.first:
            return
        alone = self.ranks.size == 1  # several ranks stop at places of their own
        if self.hold.forced or self.halfway or not alone:  # only the checkpoint before is sound
            print(f"\nstopped at once; go on from the last checkpoint with resume=True and {self.keeper.folder}", file=sys.stderr)
            return
        self.save()
        place = f"stage {self.state.stage + 1}, epoch {self.state.epoch + 1}, step {self.state.step}"
        print(f"\nstopped at {place}; go on with resume=True (isthmus fit --resume) and {self.keeper.folder}", file=sys.stderr)


def _train(work: _Work, stages: list[Stage], found: Checkpoint | None) -> Best:
    """All stages that are not yet done."""
    state = work.state
    for number, stage in enumerate(stages):
        domains = _domains(work.dataset, work.how, stage)
        if number < state.stage or not domains:
            continue
        rows = {weight: work.shards.own(weight, mask.to(work.device)) for weight, mask in (stage.rows or {}).items()}
        stage = replace(stage, rows=rows)
        with only(work.model, stage):
            work.optimisers = _optimisers(work, stage) if stage.solve is None else []
            if found is not None:
                found.restore_optimisers(work.optimisers, work.shards)
            _solve(work, stage, domains) if stage.solve is not None else _epochs(work, stage, domains)
        found = None
        with work.hold:
            work.keeper.bring_back(work.model, work.shards)
            work.ranks.align(work.model, work.shards)
            work.optimisers = []
            state.next_stage(number)
    return state.kept or Best(0, "")


def _optimisers(work: _Work, stage: Stage) -> Optimisers:
    """Of the weights that want a gradient; those of which some rows stand still never decay."""
    how, settings = work.how, (work.how.lr, work.how.table_lr, work.how.table_optimiser, work.how.weight_decay)
    found, lines = make_optimisers(
        work.model, *settings, table_decay=how.table_decay, spared=tuple(stage.rows or ()), momentum=how.momentum
    )
    if work.shards:
        lines.append(f"of {len(work.shards)} tables rank 0 holds these rows: they are split over {work.ranks.size} ranks")
    work.bar.say("\n".join(lines))
    return found


def _solve(work: _Work, stage: Stage, domains: tuple[int, ...]) -> None:
    """One stage in closed form: a single step of a single epoch."""
    state = work.state
    if state.epoch:
        return
    if not state.step and stage.solve is not None:
        work.halfway = True
        with work.shards.open():
            stage.solve(work.dataset, domains)
        work.ranks.align(work.model, work.shards)
        state.step, work.halfway = 1, False
    values = _validate(work, stage, domains)
    with work.hold:
        _end_epoch(work, stage, values)


def _epochs(work: _Work, stage: Stage, domains: tuple[int, ...]) -> None:
    """One stage: epochs of batches until it is over."""
    state, how = work.state, work.how
    total, stream_of = _feed(work, _plan(work, domains))
    while not _over(state, how):
        training(work.model)
        epoch, step = state.epoch, state.step
        work.bar.begin(f"{stage.name} {epoch + 1}/{how.last}", total, step)
        stream = stream_of(epoch, step)
        clock = time.monotonic()
        with closing(stream):
            for batch in stream:
                with work.hold:
                    _set_rates(work.optimisers, how.rate(epoch + state.step / total))
                    _step(work, stage, batch.to(work.device))
                    clock = _count(work, batch, clock)
        values = _validate(work, stage, domains)
        with work.hold:
            _end_epoch(work, stage, values)
    _warn_of_nothing_learnt(work, stage)


def _warn_of_nothing_learnt(work: _Work, stage: Stage) -> None:
    """Says so where a stage ends before the loss has left the place where all items are scored alike.

    Yes-and-no learning of rows can stand there for epochs, while validation moves by chance and patience runs out.
    """
    if work.how.objective != "bce" or not work.ranks.first:
        return
    entry = work.state.log[-1]
    loss = entry["losses"].get("loss", 0.0)  # a stage of another loss has none of this name
    if loss >= MOVED * ALIKE:
        message = (
            f"stage {stage.name!r} ended after {entry['epoch'] + 1} epochs at a loss of {loss:.4f}; a model that scores all items "
            f"alike has {ALIKE:.4f}.  It has learnt next to nothing: give it more epochs or patience, a higher lr, or less table_decay"
        )
        warnings.warn(message, UserWarning, stacklevel=2)


def _over(state: State, how: How) -> bool:
    """Has the stage run all its epochs, or got no better for ``patience`` of them?"""
    stale = 0 if state.best is None else state.epoch - 1 - state.best.epoch
    return state.epoch >= how.last or (how.patience is not None and stale >= how.patience)


def _set_rates(optimisers: Optimisers, share: float) -> None:
    """Every group's rate becomes ``share`` of the rate it began with."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = group.setdefault("initial_lr", group["lr"]) * share


def _step(work: _Work, stage: Stage, batch: Batch) -> None:
    """One batch: forward, backward, update."""
    state = work.state
    work.ranks.seed(work.how.seed, state.stage, state.epoch, state.step)
    with torch.autocast(work.device.type, torch.bfloat16, enabled=work.half), work.shards.open():
        losses = stage.terms(work.model, batch, work.task.loss)
    if work.ranks.size > 1:
        losses = {name: loss * batch.share for name, loss in losses.items()}
    losses["total"] = torch.stack(list(losses.values())).sum()
    for optimiser in work.optimisers:
        optimiser.zero_grad(set_to_none=True)
    losses["total"].backward()
    late = time.monotonic() - work.saved > work.how.checkpoint_minutes * 60
    work.shards.exchange()
    work.late = work.ranks.exchange(work.model, late and work.ranks.first, work.shards)
    drop_other_rows(stage.rows or {})
    if work.how.clip is not None:
        clip_gradients(work.model.parameters(), work.how.clip, work.shards)
    for optimiser in work.optimisers:
        optimiser.step()
    work.pending.append({name: loss.detach() for name, loss in losses.items()})
    work.state.step += 1


def _count(work: _Work, batch: Batch, clock: float) -> float:
    """After a step: rows, time, losses, and a checkpoint when one is due.  Returns the new time."""
    now = time.monotonic()
    work.state.rows += len(batch) * work.ranks.size  # within a row of it a step
    work.state.seconds += now - clock
    work.bar.step(work.state.rows, work.state.seconds)
    if len(work.pending) >= FLUSH:
        work.read_losses()
    if work.late:
        work.save()
        now = time.monotonic()
    return now


def _end_epoch(work: _Work, stage: Stage, values: Values) -> None:
    """Logs, keeps the weights if they are the best, writes a checkpoint."""
    state, how = work.state, work.how
    metric = how.monitor or work.task.metrics[0]
    work.read_losses()
    watched = dict(values.get(metric, {}))
    now = Best(state.epoch, metric, watched.pop("all", math.nan), watched)
    better = how.keep == "last" or now.beats(state.best)  # the newest is kept: patience never runs out
    entry = {
        "stage": stage.name,
        "epoch": state.epoch,
        "losses": {name: value / state.step for name, value in state.losses.items()},
        "metrics": values,
        "best": better,
        "rows": state.rows,
        "rows_per_s": round(state.rows / state.seconds, 1) if state.seconds else None,
        "lr": sorted({group["lr"] for optimiser in work.optimisers for group in optimiser.param_groups}),
    }
    state.log.append(entry)
    work.board.write(entry, len(state.log))
    if better:
        state.best = now
        work.keeper.keep(work.model, work.shards)
    state.next_epoch()
    work.save()
    work.bar.say(f"{stage.name} {now.epoch + 1}: {metric} {now.value:.4f}" + ("  kept" if better else ""))


def _validate(work: _Work, stage: Stage, domains: tuple[int, ...]) -> Values:
    """What rank 0 finds, with rows of the others' tables."""
    return work.ranks.told(lambda: _values(work, stage, domains), work.shards.open())


def _values(work: _Work, stage: Stage, domains: tuple[int, ...]) -> Values:
    """The task's metrics, and the one watched, on a bounded number of validation rows of each domain; {} where no rows can judge
    the stage.

    Raises:
        ConfigError: the metric watched is not defined on these rows.
    """
    how, offsets = work.how, work.dataset.part("valid").offsets
    domains = tuple(d for d in domains if how.targets is None or d in how.targets)
    if not any(offsets[d + 1] > offsets[d] for d in domains):
        return {}
    metric = how.monitor or work.task.metrics[0]
    limit = how.eval_queries if work.task.ranked else how.eval_rows
    names = tuple(dict.fromkeys((metric, *work.task.metrics)))
    scores = score(work.model, work.dataset, "valid", task=work.task, how=how, domains=domains, limit=limit)
    if stage.known and (scores := replace(scores, frame=scores.frame.filter(pl.col("state") != "new"))).frame.is_empty():
        return {}
    frame = measure(scores, names, resamples=0).filter(pl.col("state") == "all")
    values: Values = {name: {} for name in names}
    for name, domain, value in frame.select("metric", "domain", "value").iter_rows():
        values[name][domain] = math.nan if value is None else value
    if math.isnan(values[metric]["all"]):
        if stage.known:
            return {}
        came = f"{metric} is not defined on the validation rows"
        raise ConfigError(came, "rows of both labels", "watch another metric, or validate on more rows")
    return values


def check(model: Model, dataset: Dataset, task: Task, how: How, out: str | Path | None, stages: list[Stage]) -> None:
    """Everything that can be refused before the first step.

    Raises:
        ConfigError: model, data set and task do not go together, or a setting is impossible.
    """
    if model.schema.fingerprint() != dataset.schema.fingerprint():
        raise ConfigError(
            f"a model built for schema {model.schema.fingerprint()} and data of schema {dataset.schema.fingerprint()}",
            "a model built for this data set",
            "build it with dataset.schema",
        )
    if task.name not in model.tasks:
        raise ConfigError(f"{type(model).__name__} cannot do task {task.name!r}", f"one of {model.tasks}", "choose another model or task")
    if dataset.schema.label not in task.labels:
        suggested = default_task(dataset.schema).name
        came = f"task {task.name!r} on {dataset.schema.label!r} labels"
        raise ConfigError(came, f"labels of kind {task.labels}", f"use task {suggested!r}")
    metrics.get(how.monitor or task.metrics[0])
    if how.tensorboard and out is None:
        raise ConfigError("tensorboard=True without a folder", "a folder to write events into", "give out=")
    draws = any(stage.solve is None for stage in stages)  # a closed form has no use for negatives
    if draws and how.sampler in POOLED and not (task.ranked and isinstance(model, Retriever)):
        came = f"sampler {how.sampler!r} for {type(model).__name__} in task {task.name!r}"
        raise ConfigError(came, "a retriever in a ranked task", 'use sampler "uniform" or "popularity"')
    if draws and how.sampler in POOLED and how.objective == "bce":
        came = f"sampler {how.sampler!r} with objective 'bce'"
        raise ConfigError(came, "negatives of each row's own", 'use sampler "uniform" or "popularity"')
    for d in (*(how.domains or ()), *(how.targets or ())):
        if not 0 <= d < len(dataset.schema.domains):
            raise ConfigError(f"domain index {d}", f"0 to {len(dataset.schema.domains) - 1}", "see dataset.schema.domain_names")
    if not any(_domains(dataset, how, stage) for stage in stages):
        raise ConfigError(f"no stage of {type(model).__name__} trains on domains {how.domains}", "at least one", "choose other domains")


def _domains(dataset: Dataset, how: How, stage: Stage) -> tuple[int, ...]:
    """Domain indices that a stage trains on, within those asked for."""
    sizes = sum(np.diff(dataset.part(part).offsets) for part in ("valid", "test"))
    tested = [how.train_on == "all" or stage.solve is not None or size > 0 for size in np.atleast_1d(sizes)]
    every = range(len(dataset.schema.domains))
    return tuple(d for d in every if tested[d] and all(asked is None or d in asked for asked in (how.domains, stage.domains)))


def _feed(work: _Work, plan: Plan) -> tuple[int, Callable[[int, int], Generator[Batch, None, None]]]:
    """Steps of an epoch, and (epoch, first step) -> its batches: windows of sequences where a model learns from all places of one."""
    dataset, needs, positives = work.dataset, work.model.needs, work.task.ranked
    if work.task.ranked and isinstance(work.model, Sequential):
        windows = WindowBatches(dataset, needs, plan)
        return windows.steps, windows.epoch

    def rows(epoch: int, start: int) -> Generator[Batch, None, None]:
        return batches(dataset, "train", needs, plan, epoch=epoch, start=start, positives_only=positives)

    return steps(dataset, "train", plan, positives_only=positives), rows


def _plan(work: _Work, domains: tuple[int, ...]) -> Plan:
    """How a stage's rows become batches; only a single-domain control is cut off from the other domains' histories."""
    how = work.how
    sampler = _sampler(work)
    usual = SHARED if sampler in ("mixed", "drawn") else work.task.negatives if how.objective == "softmax" else 1
    return Plan(
        batch_size=how.batch_size,
        seed=how.seed,
        temperature=how.temperature,
        negatives=usual if how.negatives is None else how.negatives,
        sampler=sampler,
        alpha=how.alpha,
        log_q=how.log_q,
        history_length=how.history_length,
        moment=how.moment,
        domains=domains,
        cross=how.crosses(len(work.dataset.schema.domains)),
        rank=work.ranks.rank,
        ranks=work.ranks.size,
        shuffle_buffer=how.shuffle_buffer,
        pinned=work.device.type == "cuda",
    )


def _sampler(work: _Work) -> str:
    """How negatives are found; of the shared kind only where the loss is a softmax over dot products."""
    if work.how.sampler != "auto":
        return work.how.sampler
    if not (work.task.ranked and isinstance(work.model, Retriever)) or work.how.objective == "bce":
        return "uniform"
    largest = max(len(work.dataset.catalogue(d)) for d in range(len(work.dataset.schema.domains)))
    if largest <= FULL_CATALOGUE:
        return "full"
    return "drawn" if isinstance(work.model, Sequential) else "mixed"


def pick_device(name: str) -> torch.device:
    """``auto`` -> cuda, mps or cpu, the first there is.

    Raises:
        ConfigError: the device asked for is not there.
    """
    if name in ("auto", "cuda") and torch.cuda.is_available() and (place := os.environ.get("LOCAL_RANK")):
        name = f"cuda:{int(place) % torch.cuda.device_count()}"  # under torchrun: a device each
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name == "auto":
        return torch.device(next(kind for kind, is_there in there.items() if is_there))
    if not there[name.split(":")[0]]:
        raise ConfigError(f"device {name!r} is not there", f"one of {[k for k, v in there.items() if v]}", 'use device="auto"')
    return torch.device(name)


def in_half(precision: str, device: torch.device) -> bool:
    """Are products in bfloat16?  ``auto`` -> where the device has instructions for them."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and torch.cpu._is_avx512_bf16_supported()


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _not_a_number(state: State, step: int, losses: dict[str, float], how: How) -> FitError:
    named = ", ".join(f"{name} = {value:g}" for name, value in losses.items())
    return FitError(
        f"the loss is not a number in stage {state.stage + 1}, epoch {state.epoch + 1}, step {step + 1} ({named})",
        "finite losses",
        f"lower lr (now {how.lr:g}) or table_lr, set clip=1.0, and look for extreme values among numeric fields and labels",
    )


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float, shards: Shards = UNSPLIT) -> Tensor:
    """Scales all gradients so that their common norm is at most ``limit``; sparse ones are summed up by row first.

    Args:
        parameters: of one model.
        limit: above 0.
        shards: the tables of which each rank has a part of the gradient.

    Returns:
        The norm before, a scalar.
    """
    held = [p for p in parameters if p.grad is not None]
    for p in held:
        if p.grad is not None and p.grad.is_sparse:
            p.grad = p.grad.coalesce()
    values = [(p in shards, p.grad.values() if p.grad.is_sparse else p.grad) for p in held if p.grad is not None]
    norms = [torch.linalg.vector_norm(value) for split, value in values if not split]
    if shards:
        own = [torch.linalg.vector_norm(value).square() for split, value in values if split]
        norms.append(shards.ranks.sum(sum(own, torch.zeros((), device=shards.ranks.device))).sqrt())
    if not norms:
        return torch.zeros(())
    norm = torch.linalg.vector_norm(torch.stack(norms))
    scale = (limit / (norm + 1e-12)).clamp(max=1.0)
    for _, value in values:
        value.mul_(scale)
    return norm
