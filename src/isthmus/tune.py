"""``search``: the settings of one model that do best on validation, found by Optuna in trials that Ray Tune runs on a cluster.

A trial is stopped early when its value is worse than that of most others after as many epochs (ASHA).  The test part is never read.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import Future, wait
from functools import partial
from pathlib import Path
from threading import Thread
from typing import Any

from isthmus import metrics, storage
from isthmus.cluster import Share, joined
from isthmus.data.dataset import Dataset
from isthmus.errors import ConfigError, IsthmusError
from isthmus.fit import build, check, fit
from isthmus.parts import Say
from isthmus.space import Space
from isthmus.task import Task, default_task, get_task
from isthmus.trials import FAILED, FINISHED, INTERRUPTED, STOPPED, Search, Trial

REDUCTION = 3  # of so many trials one goes on to three times the epochs


def search(dataset: Dataset, space: Space, out: str | Path, *, resume: bool = False, gpus: float | None = None, say: Say = print) -> Search:
    """Tries settings until the search has its trials.

    Args:
        dataset: its parts ``train`` and ``valid`` are read.
        space: what to try.
        out: the search's folder, which all nodes of the cluster see.
        resume: go on: trials that ended count, those that were interrupted go on from their checkpoints.  More trials than
            before may be asked for.
        gpus: of each trial; None: see ``isthmus.cluster.Share``.
        say: gets one line for each trial that ends.

    Raises:
        ConfigError: the space does not go with model and data, or Ray or Optuna is not installed.
        StorageError: the folder holds a search and ``resume`` is False.
        CheckpointError: it holds another one.
        FitError: no trial came to a value.
        KeyboardInterrupt: Ctrl-C.
    """
    try:
        import optuna
    except ImportError as error:
        raise ConfigError("Optuna is not installed", "the extra 'ray'", "pip install 'isthmus[ray]'") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    task, last = _checked(dataset, space, out)
    space = dataclasses.replace(space, task=task.name, metric=space.metric or task.metrics[0])
    asked = dataclasses.asdict(dataclasses.replace(space, trials=1, parallel=None))
    asked |= {"fingerprint": dataset.schema.fingerprint(), "split": dataset.manifest.get("split"), "last": last}
    found = Search(space, str(space.metric), Path(out).absolute(), json.loads(json.dumps(asked)))
    with joined(found.folder):
        found.open(resume)
        if space.trials > len(found.ended):
            _run(found, dataset, gpus, say)
    with storage.whole_file(found.folder / "trials.parquet") as path:
        found.table().write_parquet(path)
    with storage.whole_file(found.folder / "best.toml") as path:
        path.write_text(found.to_toml(), encoding="utf-8")
    return found


def _checked(dataset: Dataset, space: Space, out: str | Path) -> tuple[Task, str]:
    """The task, and the name of the model's last stage, after all that can be refused before the first trial."""
    if not sum(dataset.manifest["rows"]["valid"]):
        raise ConfigError(f"{dataset.path} without validation rows", "rows that settings are chosen on", "prepare it with another split")
    model = build(space.model, dataset.schema, space.args_at(space.first), seed=space.seed)
    task = get_task(space.task) if space.task else default_task(dataset.schema, model.tasks)
    check(model, dataset, task, space.how_at(space.first), out, model.stages())
    return task, model.stages()[-1].name


def _run(found: Search, dataset: Dataset, gpus: float | None, say: Say) -> None:
    """Ray Tune's part."""
    os.environ |= {"TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1", "RAY_AIR_NEW_OUTPUT": "0"}  # it writes and prints nothing of its own
    from ray import tune
    from ray.tune.schedulers import ASHAScheduler

    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # trials that fail are told in our words
    space, how = found.space, found.space.how_at(found.space.first)
    share = Share.of(how, gpus)
    share.check()
    grace, end = min(space.grace, space.epochs), space.epochs + 1  # a trial that ended by itself reports that end
    trial = tune.with_parameters(_trial, found=found, data=str(dataset.path.absolute()))
    tuner = tune.Tuner(
        tune.with_resources(trial, {"cpu": share.cpus, "gpu": share.gpus}),
        tune_config=tune.TuneConfig(
            metric="value",
            mode=_mode(found.metric),
            num_samples=space.trials - len(found.ended),
            max_concurrent_trials=space.parallel,
            search_alg=_optuna(found),
            scheduler=ASHAScheduler(time_attr="epoch", grace_period=grace, max_t=end, reduction_factor=REDUCTION),
        ),
        run_config=tune.RunConfig(name="tune", storage_path=str(found.folder / ".ray"), callbacks=[_book(found, say)], verbose=0),
    )
    try:
        tuner.fit()
    finally:
        shutil.rmtree(found.folder / ".ray", ignore_errors=True)
    if len(found.ended) < space.trials:  # Ray Tune answers Ctrl-C by an early end
        print(f"\nstopped; go on with resume=True (isthmus tune --resume) and {found.folder}", file=sys.stderr)
        raise KeyboardInterrupt


def _mode(metric: str) -> str:
    return "max" if metrics.get(metric).higher_is_better else "min"


def _optuna(found: Search) -> Any:
    """Optuna's search, which knows the trials that ended, and begins with those that were interrupted."""
    import optuna
    from ray.tune.search.optuna import OptunaSearch

    space, ended = found.space, [trial for trial in found.ended if trial.value is not None]
    known = OptunaSearch(
        {name: parameter.distribution() for name, parameter in space.parameters.items()},
        metric="value",
        mode=_mode(found.metric),
        points_to_evaluate=[space.suggestion(trial.settings) for trial in found.trials if trial.state == INTERRUPTED],
        sampler=optuna.samplers.TPESampler(seed=space.seed + len(found.trials)),  # who goes on draws other points than she has
    )
    for trial in ended:
        known.add_evaluated_point(space.suggestion(trial.settings), float(trial.value or 0.0))
    return known


def _book(found: Search, say: Say) -> Any:
    """Keeps what becomes of each trial."""
    from ray import tune

    class Book(tune.Callback):
        def __init__(self) -> None:
            self.own: dict[str, Trial] = {}

        def on_trial_start(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            self.own[trial.trial_id] = found.begin(found.space.point(trial.config))

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            result = trial.last_result
            own = self.own[trial.trial_id]
            own.state, own.value, own.epochs = FINISHED if result["finished"] else STOPPED, result["value"], result["epochs"]
            self._say(own)

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            own = self.own[trial.trial_id]
            said = found.run_folder(own.settings) / "failed.json"
            own.state, own.error = FAILED, storage.read_json(said) if said.exists() else "its process died"
            self._say(own)

        def _say(self, own: Trial) -> None:
            found.keep()
            say(f"[{len(found.ended)}/{found.space.trials}] {own.describe(found.metric)}")

    return Book()


def _trial(suggested: dict[str, Any], found: Search, data: str) -> None:
    """Trains one point, in a process of Ray's, and reports what ``fit`` writes into the run's log, epoch by epoch.

    Raises:
        IsthmusError: of ``fit``.
    """
    from ray import tune

    point = found.space.point(suggested)
    folder = found.run_folder(point)
    with storage.claim(folder, wait=True):  # the same point may be tried twice
        training = _begun(partial(_fitted, found.space, point, data, folder))
        value, epochs = None, 0
        for epochs, value in _followed(training, folder / "log.jsonl", found.asked["last"], found.metric):
            tune.report({"epoch": epochs, "epochs": epochs, "value": value, "finished": False})
        try:
            training.result()
        except IsthmusError as error:
            storage.write_json(folder / "failed.json", str(error))
            raise
        tune.report({"epoch": found.space.epochs + 1, "epochs": epochs, "value": value, "finished": True})


def _fitted(space: Space, point: dict[str, Any], data: str, folder: Path) -> None:
    dataset, how = Dataset.load(data), space.how_at(point)
    model = build(space.model, dataset.schema, space.args_at(point), seed=how.seed)
    fit(model, dataset, get_task(str(space.task)), how, folder, resume=True)


def _begun(work: Any) -> Future[None]:
    """Work in a thread that ends with its process: Ray Tune ends the process of a trial that it stops."""
    training: Future[None] = Future()

    def run() -> None:
        try:
            training.set_result(work())
        except BaseException as error:
            training.set_exception(error)

    Thread(target=run, daemon=True).start()
    return training


def _followed(training: Future[None], log: Path, stage: str, metric: str) -> Iterator[tuple[int, float]]:
    """Epochs of the last stage and its best value, each time ``fit`` has logged another one."""
    epochs, value, over = 0, float("nan"), False
    while not over:
        over = not wait([training], timeout=0.5).not_done
        lines = log.read_text(encoding="utf-8").splitlines() if log.exists() else []
        logged = [entry for entry in map(json.loads, lines) if entry["stage"] == stage]
        for entry in logged[epochs:]:
            value = entry["metrics"][metric]["all"] if entry["best"] else value
            epochs += 1
            yield epochs, value
