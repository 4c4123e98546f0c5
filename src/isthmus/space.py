"""``Space``: what a search for settings tries, read strictly from TOML.

::

    task = "ctr"                                     # default: by labels and model
    [tune]
    trials = 50
    metric = "auc"                                   # on validation; default: the task's first
    [model]
    name = "mmoe"
    experts = {choices = [2, 4, 8]}                  # any values
    dropout = {from = 0.0, to = 0.5}                 # whole numbers where both ends are
    hidden = [64]                                    # what is no such table is the same in every trial
    [fit]
    epochs = 10
    lr = {from = 1e-4, to = 1e-1, log = true}
"""

from __future__ import annotations

import json
import math
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.errors import ConfigError, nearest
from isthmus.how import How
from isthmus.line import FIT, args_of, check_training, fit_of
from isthmus.models import check_settings

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

SECTIONS = ("task", "tune", "model", "fit")
PARAMETER = ("choices", "from", "to", "log")
EXAMPLE = "{from = 1e-4, to = 1e-1, log = true}"
TUNE: dict[str, type] = {"trials": int, "metric": str, "seed": int, "grace": int, "parallel": int}


@dataclass(frozen=True)
class Choice:
    """A parameter with a list of values, which Optuna knows by their JSON."""

    values: tuple[Any, ...]

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values that stand for all of them when settings are checked."""
        return self.values

    def distribution(self) -> BaseDistribution:
        """As Optuna has it."""
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution([json.dumps(value) for value in self.values])

    def value(self, suggested: Any) -> Any:
        """What Optuna's suggestion means."""
        return json.loads(suggested)

    def suggestion(self, value: Any) -> Any:
        """The inverse of ``value``."""
        return json.dumps(value)


@dataclass(frozen=True)
class Range:
    """A parameter between two numbers, both included; whole ones where both ends are."""

    low: float
    high: float
    log: bool = False

    @property
    def ends(self) -> tuple[Any, ...]:
        """The lowest and the highest value."""
        return self.low, self.high

    def distribution(self) -> BaseDistribution:
        """As Optuna has it."""
        from optuna.distributions import FloatDistribution, IntDistribution

        if isinstance(self.low, int) and isinstance(self.high, int):
            return IntDistribution(self.low, self.high, log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)

    def value(self, suggested: Any) -> Any:
        """What Optuna's suggestion means."""
        return suggested

    def suggestion(self, value: Any) -> Any:
        """The inverse of ``value``."""
        return value


@dataclass(frozen=True)
class Space:
    """What is tried.

    Attributes:
        model: its name.
        args, fit: hyper-parameters, and settings of ``fit``, that are the same in every trial.
        parameters: those that are not, by name; settings of ``fit`` as "fit.<name>".
        task: name of a task; None: the default for labels and model.
        trials: how many.
        metric: that decides, on validation; None: the task's first.
        seed: of the trainings and of the search.
        grace: epochs that a trial gets before it may be stopped for being worse than others.
        parallel: trials at once, at most; None: as many as the cluster has room for.
    """

    model: str
    args: dict[str, Any]
    fit: dict[str, Any]
    parameters: dict[str, Choice | Range]
    task: str | None = None
    trials: int = 50
    metric: str | None = None
    seed: int = 0
    grace: int = 1
    parallel: int | None = None

    def __post_init__(self) -> None:
        check_settings(self.model, self.args)
        for name, parameter in args_of(self.parameters).items():
            for value in parameter.ends:
                check_settings(self.model, {name: value})
        if "monitor" in self.fit or FIT + "monitor" in self.parameters:
            raise ConfigError("fit setting 'monitor' in a search", "one metric that decides", "write it as metric = ... in [tune]")
        check_training(self.fit)
        for name, parameter in fit_of(self.parameters).items():
            for value in parameter.ends:
                check_training({**self.fit, name: value})
        for name in ("trials", "grace", "parallel"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ConfigError(f"{name} = {value}", "1 or more", "correct it, or leave it out for the default")
        if not self.parameters:
            raise ConfigError("a search without a parameter", "at least one with choices or a range", f"lr = {EXAMPLE}")

    def point(self, suggested: dict[str, Any]) -> dict[str, Any]:
        """The parameters' values from what Optuna suggests."""
        return {name: parameter.value(suggested[name]) for name, parameter in self.parameters.items()}

    def suggestion(self, point: dict[str, Any]) -> dict[str, Any]:
        """The inverse of ``point``."""
        return {name: parameter.suggestion(point[name]) for name, parameter in self.parameters.items()}

    @property
    def first(self) -> dict[str, Any]:
        """A point of the space."""
        return {name: parameter.ends[0] for name, parameter in self.parameters.items()}

    def args_at(self, point: dict[str, Any]) -> dict[str, Any]:
        """The model's hyper-parameters."""
        return {**self.args, **args_of(point)}

    @property
    def epochs(self) -> int:
        """The most that a trial has."""
        asked = self.parameters.get(FIT + "epochs")
        return max(asked.ends) if asked else self.how_at(self.first).epochs

    def how_at(self, point: dict[str, Any]) -> How:
        """The settings of training."""
        return How.of({**self.fit, **fit_of(point), "seed": self.seed, "monitor": self.metric, "progress": False})


def read_space(path: str | Path) -> Space:
    """Reads a search space.

    Raises:
        ConfigError: the file is missing, is not TOML, or has a key, name or value that is not right.
    """
    try:
        raw = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing", "a search space in TOML", "check the path; `isthmus tune --help` has an example") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}", "a search space in TOML", "mend the line it names") from error
    return parse_space(raw, str(path))


def parse_space(raw: dict[str, Any], where: str = "space") -> Space:
    """A search space from plain values; ``where`` is named in errors.

    Raises:
        ConfigError: a key, name or value that is not right.
    """
    _known(raw, SECTIONS, where)
    for key in ("tune", "model", "fit"):
        if not isinstance(raw.get(key, {}), dict):
            raise ConfigError(f"{where}: {key} = {raw[key]!r}", "a section", f"[{key}]")
    told, model = raw.get("tune", {}), dict(raw.get("model", {}))
    _known(told, tuple(TUNE), f"{where}: [tune]")
    for key, value in {**told, **({"task": raw["task"]} if "task" in raw else {})}.items():
        wanted = TUNE.get(key, str)
        if not isinstance(value, wanted) or isinstance(value, bool):
            raise ConfigError(f"{where}: {key} = {value!r}", f"a value of type {wanted.__name__}", "correct it")
    name = model.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"{where}: [model] with name = {name!r}", "the name of a model", "`isthmus models` lists the names")
    fit = raw.get("fit", {})
    parameters = {key: _parameter(v, f"{where}: {key}") for key, v in model.items() if isinstance(v, dict)}
    parameters |= {FIT + key: _parameter(v, f"{where}: {key}") for key, v in fit.items() if isinstance(v, dict)}
    fixed, training = ({key: v for key, v in section.items() if not isinstance(v, dict)} for section in (model, fit))
    return Space(name, fixed, training, parameters, raw.get("task"), **told)


def _parameter(raw: dict[str, Any], where: str) -> Choice | Range:
    """``{choices = [...]}``, or ``{from = ..., to = ..., log = ...}``."""
    _known(raw, PARAMETER, where)
    if "choices" in raw:
        if len(raw) > 1 or not isinstance(raw["choices"], list) or not raw["choices"]:
            raise ConfigError(f"{where} = {raw}", "choices = [...] alone, with at least one", "leave out the rest")
        return Choice(tuple(raw["choices"]))
    low, high, log = raw.get("from", math.nan), raw.get("to", math.nan), raw.get("log", False)
    if not (_number(low) and _number(high) and isinstance(log, bool) and low < high and (low > 0 or not log)):
        raise ConfigError(f"{where} = {raw}", "from below to; with log = true both above 0", EXAMPLE)
    return Range(low, high, log)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _known(raw: dict[str, Any], names: tuple[str, ...], where: str) -> None:
    for key in raw:
        if key not in names:
            raise ConfigError(f"{where}: unknown key {key!r}", f"one of {', '.join(names)}", nearest(key, names))
