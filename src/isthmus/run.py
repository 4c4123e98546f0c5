"""``Run``: what a training leaves behind, kept in a folder and read back without the data.

A run's folder::

    run.json            what was trained on what, and how
    log.jsonl           one line per epoch: losses by name, metrics overall and per domain, rows per second
    model.safetensors   the best weights so far
    checkpoint-<n>/     while training: where to go on from (see ``isthmus.checkpoint``)
    result.json         written last: the training is finished
"""

from __future__ import annotations

import dataclasses
import json
import math
import platform
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from isthmus import checkpoint, metrics
from isthmus.checkpoint import Checkpoint, Optimisers
from isthmus.errors import CheckpointError, ConfigError, SourceError, StorageError
from isthmus.how import How
from isthmus.layers.features import EntityFields
from isthmus.layers.table import undrawn
from isthmus.model import Model
from isthmus.models import ROWS, check_settings, get_model, share_rows
from isthmus.schema import Schema
from isthmus.shards import Shards
from isthmus.stages import Adaptation
from isthmus.storage import read_json, sweep, whole_file, write_json
from isthmus.task import Task, get_task

if TYPE_CHECKING:
    from isthmus.data.dataset import Dataset

HARMLESS = ("device", "threads", "checkpoint_minutes", "tensorboard", "progress", "sharded")  # may differ when a run is resumed


@dataclass(frozen=True)
class Best:
    """The epoch whose weights were kept.

    Attributes:
        epoch: within its stage, from 0.
        metric: the metric watched.
        value: its mean over the domains on validation; NaN when there were no validation rows.
        domains: its value per domain name.
    """

    epoch: int
    metric: str
    value: float = math.nan
    domains: dict[str, float] = field(default_factory=dict)

    def beats(self, other: Best | None) -> bool:
        """Better than another one, in the metric's own direction; anything beats nothing and NaN."""
        if other is None or math.isnan(other.value):
            return True
        return self.value > other.value if metrics.get(self.metric).higher_is_better else self.value < other.value

    def to_dict(self) -> dict[str, Any]:
        """Plain values; NaN as None, which JSON has."""
        plain = {name: None if math.isnan(value) else value for name, value in {"": self.value, **self.domains}.items()}
        return {"epoch": self.epoch, "metric": self.metric, "value": plain.pop(""), "domains": plain}

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> Best:
        """The inverse of ``to_dict``."""
        domains = {name: math.nan if value is None else value for name, value in raw["domains"].items()}
        return cls(raw["epoch"], raw["metric"], math.nan if raw["value"] is None else raw["value"], domains)


@dataclass(frozen=True)
class Run:
    """A training, finished or read back.

    Attributes:
        model: with the best weights, in eval mode.
        task, how: what it was trained for, and how.
        best: the epoch kept.
        log: one entry per epoch, as in ``log.jsonl``.
        folder: where it is kept, or None.
    """

    model: Model
    task: Task
    how: How
    best: Best
    log: list[dict[str, Any]]
    folder: Path | None = None


@dataclass
class State:
    """The place in a training; with the tensors of a checkpoint this is all there is to know.

    Attributes:
        stage, epoch, step: the stage, the epoch within it, and the steps done within the epoch.
        best: of this stage.
        kept: the best of the stage before, whose weights were brought back.
        losses, rows, seconds: sums over the epoch so far.
        log: the epochs finished.
    """

    stage: int = 0
    epoch: int = 0
    step: int = 0
    best: Best | None = None
    kept: Best | None = None
    losses: dict[str, float] = field(default_factory=dict)
    rows: int = 0
    seconds: float = 0.0
    log: list[dict[str, Any]] = field(default_factory=list)

    def next_epoch(self) -> None:
        """To the first step of the next epoch."""
        self.epoch, self.step, self.losses, self.rows, self.seconds = self.epoch + 1, 0, {}, 0, 0.0

    def next_stage(self, done: int) -> None:
        """To the first epoch of the stage after ``done``."""
        self.next_epoch()
        self.stage, self.epoch, self.kept, self.best = done + 1, 0, self.best, None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {**dataclasses.asdict(self), **{key: (best := getattr(self, key)) and best.to_dict() for key in ("best", "kept")}}

    @classmethod
    def from_dict(cls, raw: dict[str, Any]) -> State:
        """The inverse of ``to_dict``."""
        values = {f.name: raw[f.name] for f in dataclasses.fields(cls)}
        return cls(**{**values, **{key: raw[key] and Best.from_dict(raw[key]) for key in ("best", "kept")}})


class Keeper:
    """Keeps a training in a folder; without one it keeps the best weights in memory and nothing else.

    Args:
        folder: of the run, or None.
        first: is this the rank that writes?
    """

    def __init__(self, folder: Path | None, first: bool = True) -> None:
        self.folder, self.first = folder, first
        self._memory: dict[str, Tensor] = {}

    def open(self, facts: dict[str, Any], resume: bool) -> Checkpoint | None:
        """Begins the folder, or finds where to go on.

        Raises:
            StorageError: it holds a run and ``resume`` is False, or it cannot be written.
            CheckpointError: its run was made from other data or settings, or is damaged.
        """
        if self.folder is None:
            return None
        path = self.folder / "run.json"
        if not path.exists():
            write_json(path, facts)
            return None
        if not resume:
            do = "go on with resume=True, or choose another folder"
            raise StorageError(f"{self.folder} holds a run already", "a folder without one", do)
        _compare(facts, read_facts(self.folder), self.folder)
        found = Checkpoint.latest(self.folder)
        if found is not None and (best := found.folder / "best.safetensors").exists():
            with whole_file(self.folder / "model.safetensors") as temporary:
                shutil.copyfile(best, temporary)
        return found

    @property
    def finished(self) -> bool:
        """Is there nothing left to train?"""
        return self.folder is not None and (self.folder / "result.json").exists()

    def keep(self, model: Model, shards: Shards) -> None:
        """These are the best weights so far; all ranks enter."""
        with shards.open():
            if self.folder is not None and self.first:
                checkpoint.save_weights(model, self.folder / "model.safetensors", shards)
        if self.folder is None and (self.first or shards):
            self._memory = {name: tensor.detach().clone() for name, tensor in checkpoint.weights(model).items()}

    def bring_back(self, model: Model, shards: Shards) -> None:
        """Puts the best weights so far into the model: rank 0's, and each rank's part of what is split."""
        if not self.first and not shards:
            return
        if self.folder is None:
            checkpoint.load_weights(model, self._memory)
        else:
            checkpoint.load_weights(model, checkpoint.load_tensors(self.folder / "model.safetensors"), shards)

    def save(self, state: State, model: Model, optimisers: Optimisers, shards: Shards) -> None:
        """Writes a checkpoint and the log; all ranks enter."""
        with shards.open(optimisers):
            if self.folder is not None and self.first:
                self._save(self.folder, state, model, optimisers, shards)

    def _save(self, folder: Path, state: State, model: Model, optimisers: Optimisers, shards: Shards) -> None:
        best = folder / "model.safetensors" if state.best is not None else None
        checkpoint.save(folder, state.to_dict(), model, optimisers, best, shards)
        with whole_file(folder / "log.jsonl") as temporary:
            temporary.write_text("".join(json.dumps(entry) + "\n" for entry in state.log), encoding="utf-8")

    def finish(self, best: Best) -> None:
        """The training is done: checkpoints are no longer needed."""
        if self.folder is not None and self.first:
            write_json(self.folder / "result.json", {"best": best.to_dict()})
            checkpoint.remove(self.folder)
            sweep(self.folder, "*.json", "log.jsonl", "model.safetensors")


def build(name: str, schema: Schema, args: dict[str, Any] | None = None, *, seed: int = 0) -> Model:
    """A model by name, with the random weights of ``seed``; torch's own generator stays as it was.

    Args:
        name: a file name of ``isthmus.models``.
        schema: of the encoded data set.
        args: its own hyper-parameters; besides, of every model with embedding tables, ``user_rows`` and ``item_rows``: ids share so many
            rows, see ``isthmus.layers.id_rows``.
        seed: of the initial weights.

    Raises:
        ConfigError: no such model or hyper-parameter (names the nearest one), a value of another type, or rows for a model whose ids have
            no such tables.
    """
    args = dict(args or {})
    check_settings(name, args)
    rows = {key: args.pop(key, None) for key in ROWS}
    with seeded(seed):
        model = get_model(name)(share_rows(schema, **rows), **args)
    for key, side in ROWS.items():
        if rows[key] is not None and not any(isinstance(m, EntityFields) and m.entity.name == side for m in model.modules()):
            raise ConfigError(f"{side}_rows for model {name!r}", f"a model with an embedding table of {side}s", "leave it out")
    return model


def load_run(folder: str | Path, model: Model | None = None) -> Run:
    """Reads a run back without its data, onto the CPU; of an unfinished one the best weights so far.

    The weights stay in their file, mapped: only what is read of a table comes into memory, and processes share it.

    Args:
        folder: of the run.
        model: gets a copy of the weights; needed only when its class does not lie in ``isthmus.models``.

    Raises:
        CheckpointError: not a run's folder, damaged, or without any weights yet.
    """
    folder = Path(folder)
    facts = read_facts(folder)
    if not (folder / "model.safetensors").exists():
        raise CheckpointError(f"{folder} has no weights yet", "a run with at least one finished epoch", "resume it first")
    weights = folder / "model.safetensors"
    if model is not None:
        checkpoint.load_weights(model, checkpoint.load_tensors(weights))
    else:
        with undrawn():
            model = rebuild(facts)
        checkpoint.map_weights(model, weights)
    try:
        if (folder / "result.json").exists():
            raw = read_json(folder / "result.json")["best"]
        else:
            found = Checkpoint.latest(folder)
            raw = found and (found.state["best"] or found.state["kept"])
        log = [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]
        best = Best.from_dict(raw) if raw else Best(0, "")
    except (SourceError, OSError, ValueError, KeyError) as error:
        raise CheckpointError(f"{folder} is damaged ({error})", "a run's folder as fit left it", "train again") from error
    return Run(model.eval(), get_task(facts["task"]), How.of(facts["how"]), best, log, folder)


def facts_of(model: Model, dataset: Dataset, task: Task, how: How, adaptation: Adaptation | None = None) -> dict[str, Any]:
    """What ``run.json`` holds.

    Raises:
        ConfigError: the model was built with arguments that JSON cannot hold.
    """
    facts = {
        "model": _name(type(model)),
        "args": model.args,
        "schema": model.schema.to_dict(),
        "fingerprint": model.schema.fingerprint(),
        "task": task.name,
        "how": dataclasses.asdict(how),
        "data": str(dataset.path.absolute()),  # where it was; a hint for later commands
        "split": dataset.manifest.get("split"),
        **({} if adaptation is None else {"adaptation": dataclasses.asdict(adaptation)}),
        "versions": {"isthmus": version("isthmus"), "torch": torch.__version__, "python": platform.python_version()},
    }
    try:
        return json.loads(json.dumps(facts))
    except TypeError as error:
        came = f"model {facts['model']!r} was built with {model.args}"
        raise ConfigError(came, "plain values (numbers, strings, lists)", str(error)) from error


def _name(kind: type[Model]) -> str:
    """Name of a model's file in ``isthmus.models``; elsewhere ``module:class``."""
    package = "isthmus.models."
    return kind.__module__.removeprefix(package) if kind.__module__.startswith(package) else f"{kind.__module__}:{kind.__qualname__}"


def read_facts(folder: Path) -> dict[str, Any]:
    """``run.json`` of a run's folder.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    try:
        return read_json(folder / "run.json")
    except SourceError as error:
        raise CheckpointError(error.came, "a folder that fit wrote", "check the path, or train again") from error


def rebuild(facts: dict[str, Any]) -> Model:
    """The model of a run, as it was built; its weights are not read yet."""
    return build(facts["model"], Schema.from_dict(facts["schema"]), facts["args"], seed=facts["how"]["seed"])


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Torch's generators start from ``seed`` in the block, and are as before after it."""
    devices = [device] if device is not None and device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def _compare(asked: dict[str, Any], kept: dict[str, Any], folder: Path) -> None:
    """Raises unless a run can go on with what is asked now."""
    if asked["fingerprint"] != kept.get("fingerprint"):
        expected = f"schema {asked['fingerprint']}"
        raise CheckpointError(f"the run in {folder} belongs to another schema", expected, "resume with the data set it was trained on")
    now, before = _settings(asked), _settings(kept)
    changed = [key for key in now if now[key] != before.get(key)]
    if changed:
        came = f"the run in {folder} began with " + ", ".join(f"{key} = {before.get(key)!r}" for key in changed)
        expected = ", ".join(f"{key} = {now[key]!r}" for key in changed)
        raise CheckpointError(came, expected, "resume with what it began with, or choose another folder")


def _settings(facts: dict[str, Any]) -> dict[str, Any]:
    """All that decides the outcome of a run on given data; a setting that did not exist yet was what is its default now."""
    usual = json.loads(json.dumps(dataclasses.asdict(How())))
    how = {key: value for key, value in {**usual, **facts.get("how", {})}.items() if key not in HARMLESS}
    rows = {key: facts.get("schema", {}).get(side, {}).get("hashed") for key, side in ROWS.items()}
    return {**{key: facts.get(key) for key in ("model", "args", "task", "split", "adaptation")}, **rows, **how}
