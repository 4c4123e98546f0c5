"""Ray: a cluster's machines, for processes that train one model together and for many trainings at once.

Which cluster is Ray's own affair: the one that ``RAY_ADDRESS`` names, else the one that runs on this machine, else this machine alone,
for as long as the work takes.  Nodes need the same Isthmus and Ray, and see the same folders.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import socket
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from isthmus.data.dataset import Dataset
from isthmus.errors import ConfigError, FitError, FollowerError, IsthmusError, StorageError
from isthmus.fit import check, fit
from isthmus.how import How
from isthmus.model import Model
from isthmus.ranks import WAIT
from isthmus.run import Keeper, Run, facts_of, load_run, rebuild
from isthmus.task import Task, get_task

Job = TypeVar("Job")
Found = TypeVar("Found")


@contextmanager
def joined(folder: Path) -> Iterator[None]:
    """Ray is connected to its cluster in the block.

    Args:
        folder: to be written by processes of any node.

    Raises:
        ConfigError: Ray is not installed, or its cluster cannot be reached.
        StorageError: a node does not see the folder.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster that begins here tells nobody
    try:
        import ray
    except ImportError as error:
        raise ConfigError("Ray is not installed", "the extra 'ray'", "pip install 'isthmus[ray]'") from error
    if ray.is_initialized():  # by whoever called
        _check_seen(folder)
        yield
        return
    logging.getLogger("ray").setLevel(logging.ERROR)
    address = os.environ.get("RAY_ADDRESS", "")
    try:
        if match := re.fullmatch(r"(?:ray://)?\[?(.+?)\]?:(\d+)", address):  # Ray itself tries for many minutes
            socket.create_connection((match[1], int(match[2])), timeout=10).close()
        ray.init(logging_level=logging.ERROR, log_to_driver=False, include_dashboard=False)
    except (OSError, RuntimeError, ValueError) as error:
        came = f"the Ray cluster at {address or 'this machine'} cannot be used ({_first_line(error)})"
        raise ConfigError(came, "a cluster that runs", "see `ray status`, or unset RAY_ADDRESS to use this machine alone") from error
    try:
        _check_seen(folder)
        yield
    finally:
        ray.shutdown()


@dataclass(frozen=True)
class Share:
    """What one process takes of the cluster: CPUs, as many as torch has threads, and GPUs."""

    cpus: float = 1.0
    gpus: float = 0.0

    @classmethod
    def of(cls, how: How, gpus: float | None = None) -> Share:
        """Of a training; ``gpus`` None: one each where the cluster has any and the device asked for is no other."""
        import ray

        if gpus is None:
            wanted = how.device.split(":")[0] in ("auto", "cuda")
            gpus = float(wanted and ray.cluster_resources().get("GPU", 0) > 0)
        return cls(float(how.threads or 1), gpus)

    def check(self, processes: int = 1) -> None:
        """Refuses what Ray would wait for forever.

        Raises:
            ConfigError: the cluster is too small for so many at once.
        """
        found = sum(self._fits(node["Resources"]) for node in _nodes())
        if found < processes:
            came = f"{processes} processes of {self.cpus:g} CPUs and {self.gpus:g} GPUs each, and a cluster with room for {found}"
            raise ConfigError(came, "room for all of them", "ask for fewer, or for fewer threads or GPUs each, or add nodes first")

    def _fits(self, resources: dict[str, float]) -> int:
        """How many a node has room for."""
        asked = {"CPU": self.cpus, "GPU": self.gpus}
        return min(int(resources.get(kind, 0.0) / number) for kind, number in asked.items() if number)


def spread(
    work: Callable[[Job], Found], jobs: Sequence[Job], share: Callable[[Job], Share], say: Callable[[str], None] = print
) -> Iterator[tuple[Job, Found]]:
    """Does jobs on the cluster, as many at once as it has room for, and yields each as soon as it is done.

    It is said which one failed, before what that one raised is raised here.  A job whose process or node dies is begun again by
    Ray, so it must be able to go on where it was.

    Raises:
        FitError: the process of a job dies again and again.
        ConfigError: the cluster has no room for a job.
        Exception: what the first failing job raised; those under way are interrupted.
    """
    import ray

    shares = [share(job) for job in jobs]
    for one in set(shares):
        one.check()
    task = ray.remote(work)
    left = {task.options(num_cpus=one.cpus, num_gpus=one.gpus).remote(job): job for job, one in zip(jobs, shares, strict=True)}
    try:
        while left:
            (done,), _ = ray.wait(list(left))
            job = left.pop(done)
            yield job, _result(done, job, say)
    finally:
        for under_way in left:
            ray.cancel(under_way)


def _result(done: Any, job: Any, say: Callable[[str], None]) -> Any:
    import ray
    from ray.exceptions import RayError, RayTaskError

    try:
        return ray.get(done)
    except RayTaskError as error:
        say(f"{job}  (failed)")
        raise error.cause from None  # as if it had happened here
    except RayError as error:
        came = f"{job}: its process died ({_first_line(error)})"
        raise FitError(came, "one that comes to its end", "give it more memory, and start again") from error


def fit_together(
    model: Model, dataset: Dataset, task: Task, how: How, out: Path, *, ranks: int, gpus: float | None = None, resume: bool = False
) -> Run:
    """Trains a model of ``isthmus.models`` on several processes of the cluster, which Ray Train starts; each calls ``fit``.

    Args:
        model: rebuilt by every process.
        dataset, task, how, resume: see ``fit``.
        out: folder of the run, which all nodes see.
        ranks: processes.
        gpus: of each; None: see ``Share.of``.

    Raises:
        IsthmusError: what a rank raised, see ``fit``.
        FitError: a rank died.
        ConfigError: the cluster has no room for so many.
    """
    check(model, dataset, task, how, out, model.stages())
    facts = facts_of(model, dataset, task, how)
    with joined(out):
        share = Share.of(how, gpus)
        share.check(ranks)
        Keeper(out).open(facts, resume)  # so that processes just go on, also those that Ray starts again when it loses a node
        _train({"facts": facts, "data": str(dataset.path.absolute()), "out": str(out.absolute())}, ranks, share)
    return load_run(out)


def _train(told: dict[str, Any], ranks: int, share: Share) -> None:
    """Ray Train's part: processes that know of each other."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchConfig, TorchTrainer

    notes = Path(told["out"]) / ".ray"  # Ray Train writes into a folder that all nodes share
    resources = {"CPU": share.cpus, "GPU": share.gpus}
    trainer = TorchTrainer(
        _rank,
        train_loop_config=told,
        torch_config=TorchConfig(timeout_s=int(WAIT.total_seconds())),
        scaling_config=ScalingConfig(num_workers=ranks, use_gpu=share.gpus > 0, resources_per_worker=resources),
        run_config=RunConfig(name="fit", storage_path=str(notes), failure_config=FailureConfig(max_failures=0)),
    )
    try:
        trainer.fit()
    except TrainingFailedError as error:
        raise _why(getattr(error, "worker_failures", {}), error, ranks) from None
    except SystemExit:  # Ray Train's answer to Ctrl-C, after it ended the processes
        print(f"\nstopped at once; go on from the last checkpoint with resume=True and {told['out']}", file=sys.stderr)
        raise KeyboardInterrupt from None
    finally:
        shutil.rmtree(notes, ignore_errors=True)


def _rank(told: dict[str, Any]) -> None:
    """One of the processes."""
    facts = told["facts"]
    fit(rebuild(facts), Dataset.load(told["data"]), get_task(facts["task"]), How.of(facts["how"]), told["out"], resume=True)


def _why(failures: dict[int, Exception], error: Exception, ranks: int) -> IsthmusError:
    """The first rank's own error, or that one died."""
    for own in failures.values():
        if isinstance(own, IsthmusError) and not isinstance(own, FollowerError):
            return own
    rank, failure = next(iter(failures.items()), ("?", error))
    came = f"a process died, or lost the others (rank {rank} of {ranks}: {_first_line(failure)})"
    return FitError(came, "all of them to train to the end", "go on from the last checkpoint with --resume")


def _check_seen(folder: Path) -> None:
    """Looks from every node at a file that is written here.

    Raises:
        StorageError: a node does not see it.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    folder.mkdir(parents=True, exist_ok=True)
    probe, nodes = folder.absolute() / f".seen-{uuid.uuid4().hex}", _nodes()
    there = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    look = ray.remote(os.path.exists)
    probe.touch()
    try:
        seen = ray.get([look.options(num_cpus=0, scheduling_strategy=one).remote(str(probe)) for one in there])
    finally:
        probe.unlink()
    if blind := [node["NodeManagerHostname"] for node, found in zip(nodes, seen, strict=True) if not found]:
        came = f"{folder} is not seen from the nodes {blind}"
        raise StorageError(came, "a folder that all nodes of the cluster share", "choose such a one, or share it")


def _nodes() -> list[dict[str, Any]]:
    import ray

    return [node for node in ray.nodes() if node["Alive"]]


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]
