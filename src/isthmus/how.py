"""``How``: the settings of training that no model owns."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from isthmus.errors import ConfigError, nearest
from isthmus.values import require_types

DEVICES = ("auto", "cuda", "mps", "cpu")
SAMPLERS = ("auto", "uniform", "popularity", "in_batch", "mixed", "drawn", "full")
SCHEDULES = ("constant", "linear", "cosine")
PRECISIONS = ("float32", "bfloat16", "auto")
TRAIN_ON = ("all", "tested")
KEEP = ("best", "last")


@dataclass(frozen=True)
class How:
    """How to train.  The same settings on the same data give the same weights, bit for bit, on a CPU.

    Attributes:
        epochs: passes over the training rows, at most, for each stage.
        schedule: of all learning rates over ``epochs``: ``constant``, or falling to zero along a line (``linear``) or half a wave
            (``cosine``).  A rate that falls lets go of what the last batches happened to say: seeds differ less.
        stop: end after this many epochs, on the schedule of ``epochs``; None: run all.
        batch_size: rows per step, events per step where whole sequences train; validation uses it too.
        lr: learning rate of everything but the embedding tables.
        table_lr: learning rate of the embedding tables; None: the optimiser's own default.
        table_optimiser: which optimiser the tables get, see ``isthmus.layers.table.optimisers``.
        momentum: of Adam (its first beta), from 0 to below 1; 0 for losses that pull against each other (adversarial ones).
        weight_decay: decoupled weight decay of everything but the tables.
        table_decay: decoupled weight decay of the embedding tables.
        clip: largest norm of the gradient over all weights of the stage; None: no clipping.
        objective: of tasks that rank: ``softmax`` over candidates, or ``bce``: each candidate for itself, chosen or not, against
            ``negatives`` (None: one) of each row's own.
        absolute_error: weight of the absolute error beside the squared one, for ratings: by the squared error alone a model learns
            means, which in skewed ratings lie below the medians that MAE asks for.
        patience: epochs without a better validation value before a stage stops; None: never early.
        keep: the weights of which epoch a stage ends with: the ``best`` on validation, or the ``last``, which runs all epochs: for a
            rate that falls to zero (an epoch in its midst still moves fast) and for losses that only take effect late.
        monitor: the validation metric to watch; None: the task's first.
        seed: of the order of the rows, the negatives and the model's own randomness.
        device: ``auto`` (cuda, mps or cpu, the first there is) or one by name, such as ``cuda:1``.
        threads: CPU threads of torch while training; None: as torch has them.
        precision: of matrix products in training; ``bfloat16`` (torch's autocast; weights, tables, norms and losses stay float32) is faster
            for wide layers where the processor or GPU has such products, and slower where it has not; ``auto``: ``bfloat16`` where
            it has.
        temperature: a domain with n rows gets a share ~ n ** temperature of each step.
        negatives: sampled for each row (``uniform``, ``popularity``), or shared by all rows of a domain in a step (``mixed``); None:
            the task's default, or 1,024 shared ones.
        sampler, alpha: how negatives are found: ``uniform`` or ``popularity`` (each row's own, see ``isthmus.data.negatives``),
            ``in_batch``, ``mixed``, ``drawn`` or ``full`` (shared, for retrievers, see ``isthmus.data.pools``); ``auto``: for retrievers
            ``full`` while no catalogue is larger than 4,000 items, else ``mixed``, or ``drawn`` where whole sequences train; for other
            models, and with ``bce``, ``uniform``.
        log_q: correct for how likely each negative was to be drawn.
        history_length: events of a history, at most.
        moment: units of time that count as one moment where whole sequences train: their events have no order, and each epoch puts them
            in another one.  86,400 where times are seconds and only days are meant.
        shuffle_buffer: rows (or windows) that are shuffled together; None: all.  Where the rows are larger than memory some millions let
            the file be read piece after piece, each piece once an epoch.
        checkpoint_minutes: between checkpoints within an epoch (one is written at every epoch's end too).
        eval_rows, eval_queries: validation rows, or for ranked tasks queries, per domain while training, at most; None: all.
        sharded: several processes split the large embedding tables by rows among them, instead of each holding them whole; see
            ``docs/scaling.md``.
        tensorboard: also write TensorBoard events into the run's folder.
        progress: a progress bar, when the output is a terminal.
        domains: train and validate on these domain indices only; None: all.
        train_on: ``all`` domains, or the ``tested`` ones: those with validation or test rows; the others give histories alone.
        targets: choose the epoch by these domain indices only; None: by all that are trained.
    """

    epochs: int = 20
    schedule: str = "constant"
    stop: int | None = None
    batch_size: int = 4096
    lr: float = 1e-3
    table_lr: float | None = None
    table_optimiser: str = "auto"
    momentum: float = 0.9
    weight_decay: float = 0.0
    table_decay: float = 0.0
    clip: float | None = None
    objective: str = "softmax"
    absolute_error: float = 0.0
    patience: int | None = 3
    keep: str = "best"
    monitor: str | None = None
    seed: int = 0
    device: str = "auto"
    threads: int | None = None
    precision: str = "float32"
    temperature: float = 1.0
    negatives: int | None = None
    sampler: str = "auto"
    alpha: float = 0.75
    log_q: bool = True
    history_length: int = 50
    moment: int = 1
    shuffle_buffer: int | None = None
    checkpoint_minutes: float = 10.0
    eval_rows: int | None = 100_000
    eval_queries: int | None = 5_000
    sharded: bool = False
    tensorboard: bool = False
    progress: bool = True
    domains: tuple[int, ...] | None = None
    train_on: str = "all"
    targets: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name in ("domains", "targets"):
            if getattr(self, name) is not None:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        require_types(type(self), {f.name: getattr(self, f.name) for f in dataclasses.fields(self)})
        if self.sampler not in SAMPLERS:
            raise ConfigError(f"sampler {self.sampler!r}", f"one of {SAMPLERS}", nearest(self.sampler, SAMPLERS))
        if self.schedule not in SCHEDULES:
            raise ConfigError(f"schedule {self.schedule!r}", f"one of {SCHEDULES}", nearest(self.schedule, SCHEDULES))
        if self.precision not in PRECISIONS:
            raise ConfigError(f"precision {self.precision!r}", f"one of {PRECISIONS}", nearest(self.precision, PRECISIONS))
        if self.train_on not in TRAIN_ON:
            raise ConfigError(f"train_on {self.train_on!r}", f"one of {TRAIN_ON}", nearest(self.train_on, TRAIN_ON))
        if not 0 <= self.momentum < 1:
            raise ConfigError(f"momentum = {self.momentum}", "a number from 0 to below 1", "0.9 is usual, 0 for adversarial losses")
        if self.keep not in KEEP:
            raise ConfigError(f"keep {self.keep!r}", f"one of {KEEP}", nearest(self.keep, KEEP))
        if self.sharded and self.table_optimiser == "dense":
            raise ConfigError(
                "sharded tables with a dense optimiser", "one that updates touched rows", 'table_optimiser="adagrad" or "adam"'
            )
        for name in ("epochs", "batch_size", "lr", "history_length", "moment"):
            _positive(name, getattr(self, name))
        for name in ("weight_decay", "table_decay", "temperature", "checkpoint_minutes", "seed"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} = {getattr(self, name)!r}", "0 or more", "correct it, or leave it out for the default")
        for name in ("table_lr", "clip", "threads", "eval_rows", "eval_queries", "patience", "stop", "shuffle_buffer"):
            if getattr(self, name) is not None:
                _positive(name, getattr(self, name))
        if self.device.split(":")[0] not in DEVICES:
            raise ConfigError(f"device {self.device!r}", f"one of {DEVICES}", nearest(self.device, DEVICES))

    @property
    def last(self) -> int:
        """Epochs to run, at most."""
        return self.epochs if self.stop is None else min(self.stop, self.epochs)

    def rate(self, done: float) -> float:
        """The share of every learning rate after ``done`` epochs."""
        share = min(done / self.epochs, 1.0)
        return {"constant": 1.0, "linear": 1 - share, "cosine": (1 + math.cos(math.pi * share)) / 2}[self.schedule]

    def crosses(self, domains: int) -> bool:
        """Do rows see the user's events in other domains?  Only where all of them are trained: a control must not."""
        return self.domains is None or set(self.domains) >= set(range(domains))

    @classmethod
    def of(cls, settings: dict[str, Any]) -> How:
        """Settings by name, such as a recipe's.

        Raises:
            ConfigError: an unknown name (tells the nearest one) or a value out of range.
        """
        known = {f.name for f in dataclasses.fields(cls)}
        for key in settings:
            if key not in known:
                raise ConfigError(f"unknown setting {key!r}", f"one of {sorted(known)}", nearest(key, known))
        return cls(**settings)


def _positive(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{name} = {value!r}", "a number above 0", "correct it, or leave it out for the default")
