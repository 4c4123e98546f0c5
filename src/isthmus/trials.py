"""``Search``: the trials of a search for settings, kept in a folder::

search.json         what was asked for, and every trial: its settings, its state, its best value on validation
trials/<hash>/      each trial's run (see ``isthmus.run``); the hash is that of its settings
trials.parquet      the table of trials
best.toml           the best settings, as a line of a recipe
"""

from __future__ import annotations

import dataclasses
import json
import math
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from isthmus import metrics, storage
from isthmus.errors import CheckpointError, FitError, StorageError
from isthmus.line import fit_of
from isthmus.parts import digest
from isthmus.space import Space

FINISHED, STOPPED, FAILED = ENDED = "finished", "stopped", "failed"
RUNNING, INTERRUPTED = "running", "interrupted"


@dataclass
class Trial:
    """One point of the space, tried.

    Attributes:
        settings: hyper-parameters, and settings of ``fit`` as "fit.<name>".
        state: ``finished``, ``stopped`` early, ``failed``, ``running``, or ``interrupted`` together with the search.
        value: its best on validation so far; None: there is none yet.
        epochs: that it was trained for; in the last stage, of a model that has several.
        error: why it failed.
    """

    settings: dict[str, Any]
    state: str = RUNNING
    value: float | None = None
    epochs: int = 0
    error: str = ""

    def describe(self, metric: str) -> str:
        """One line for people."""
        settings = "  ".join(f"{k}={v:.4g}" if isinstance(v, float) else f"{k}={json.dumps(v)}" for k, v in self.settings.items())
        if self.state == FAILED:
            return f"{settings}  failed: {self.error.splitlines()[0]}"
        return f"{settings}  {metric} {'-' if self.value is None else f'{self.value:.4f}'}, {self.state} after {self.epochs} epochs"


@dataclass
class Search:
    """Trials so far, kept in a folder.

    Attributes:
        space: what is tried.
        metric: that decides.
        folder: where it is kept.
        asked: what all trials depend on.
        trials: in the order in which they began.
    """

    space: Space
    metric: str
    folder: Path
    asked: dict[str, Any]
    trials: list[Trial] = dataclasses.field(default_factory=list)

    @property
    def ended(self) -> list[Trial]:
        """Those with nothing left to do."""
        return [trial for trial in self.trials if trial.state in ENDED]

    @property
    def best(self) -> Trial:
        """The trial with the best value.

        Raises:
            FitError: none has any.
        """
        tried = {trial.value: trial for trial in reversed(self.trials) if trial.value is not None and not math.isnan(trial.value)}
        if not tried:
            errors = [trial.error for trial in self.trials if trial.error]
            raise FitError(f"no trial of {len(self.trials)} came to a value", "at least one", errors[0] if errors else "try other settings")
        return tried[max(tried) if metrics.get(self.metric).higher_is_better else min(tried)]

    def table(self) -> pl.DataFrame:
        """All trials, the best first; settings that are no plain values as JSON."""
        names, better = list(self.space.parameters), metrics.get(self.metric).higher_is_better
        columns = {name: [_plain(trial.settings[name]) for trial in self.trials] for name in names}
        found = {self.metric: [trial.value for trial in self.trials]}
        found |= {key: [getattr(trial, key) for trial in self.trials] for key in ("state", "epochs", "error")}
        frame = pl.DataFrame({**columns, **found}, strict=False)
        return frame.sort(self.metric, descending=better, nulls_last=True, maintain_order=True)

    @property
    def training(self) -> dict[str, Any]:
        """The best settings of ``fit``."""
        return {**self.space.fit, **fit_of(self.best.settings), "monitor": self.metric}

    def to_toml(self) -> str:
        """The best settings as a line of a recipe; JSON's values are TOML's too."""
        args = {"name": self.space.model, **self.space.args_at(self.best.settings)}
        own, training = ([f"{key} = {json.dumps(value)}" for key, value in given.items()] for given in (args, self.training))
        return "\n".join(["[[models]]", *own, "", "[models.fit]", *training]) + "\n"

    def to_options(self) -> str:
        """The best settings as options of ``isthmus fit``."""
        given = {**self.space.args_at(self.best.settings), **self.training}
        pairs = [f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in given.items()]
        front = ["--model", self.space.model, "--task", str(self.space.task), "--seed", str(self.space.seed)]
        return shlex.join([*front, *(word for pair in pairs for word in ("--set", pair))])

    def open(self, resume: bool) -> None:
        """Begins the folder, or reads what was tried.

        Raises:
            StorageError: it holds a search and ``resume`` is False.
            CheckpointError: it holds another one.
        """
        path = self.folder / "search.json"
        if not path.exists():
            return self.keep()
        if not resume:
            raise StorageError(
                f"{self.folder} holds a search already", "a folder without one", "go on with --resume, or choose another folder"
            )
        kept = storage.read_json(path)
        if changed := [key for key, value in self.asked.items() if kept["asked"].get(key) != value]:
            came = f"the search in {self.folder} began with " + ", ".join(f"{key} = {kept['asked'].get(key)}" for key in changed)
            raise CheckpointError(came, ", ".join(f"{key} = {self.asked[key]}" for key in changed), "choose another folder")
        self.trials = [Trial(**trial) for trial in kept["trials"]]
        for trial in self.trials:
            trial.state = INTERRUPTED if trial.state == RUNNING else trial.state
        return None

    def keep(self) -> None:
        """Writes what was tried so far."""
        storage.write_json(self.folder / "search.json", {"asked": self.asked, "trials": [dataclasses.asdict(t) for t in self.trials]})

    def begin(self, settings: dict[str, Any]) -> Trial:
        """A trial that runs: one of these settings that was interrupted, else a new one."""
        found = next((trial for trial in self.trials if trial.state == INTERRUPTED and trial.settings == settings), None)
        if found is None:
            self.trials.append(found := Trial(settings))
        found.state = RUNNING
        self.keep()
        return found

    def run_folder(self, settings: dict[str, Any]) -> Path:
        """Where the run of these settings is kept."""
        return self.folder / "trials" / digest(settings)


def _plain(value: Any) -> Any:
    return json.dumps(value) if isinstance(value, list | dict) else value
