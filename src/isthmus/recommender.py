"""``Recommender``: three lines from a data frame.  It only composes the functions of the walk."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch

from isthmus.adapt import Adapted, adapt, settings_of
from isthmus.data.batches import query_batch
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.events import Events, read_events
from isthmus.data.rules import make_split
from isthmus.data.sources import table
from isthmus.data.split import Split
from isthmus.errors import ConfigError
from isthmus.experiment import ModelSpec, Recipe, compare, default_models
from isthmus.fit import How, Run, build, fit
from isthmus.ledger import Ledger
from isthmus.models import get_model
from isthmus.retrieve import retrieve
from isthmus.task import default_task, get_task

BLOCK = 4096  # candidates scored at once


class Recommender:
    """One model for all domains of a data frame.

    ::

        rec = Recommender("mmoe").fit(frame, user="uid", item="iid", domain="market", label="click", time="ts")
        rec.recommend("u1", "small", k=10)
        rec.ledger()          # against single-domain controls and the best shallow models
        rec.adapt(new_frame)  # on to the domains that are new in it; the others' scores stay as they are

    Args:
        model: a model's name (``isthmus models`` lists them).
        folder: where the data set and the run are kept; a temporary folder by default.
        task: ``ctr``, ``rating``, ``retrieval`` or ``next_item``; by default what the labels suggest.
        fit: settings of ``How`` (epochs, lr, seed, ...).
        args: the model's own hyper-parameters.

    Raises:
        ConfigError: no such model, task, setting or hyper-parameter.
    """

    def __init__(
        self,
        model: str = "mmoe",
        *,
        folder: str | Path | None = None,
        task: str | None = None,
        fit: dict[str, Any] | None = None,
        **args: Any,
    ) -> None:
        get_model(model)
        self.folder = Path(tempfile.mkdtemp(prefix="isthmus-") if folder is None else folder)
        if folder is None:
            weakref.finalize(self, shutil.rmtree, self.folder, ignore_errors=True)
        self.spec = ModelSpec(model, args=args)
        self.task = None if task is None else get_task(task)
        How.of(fit or {})  # refuses unknown settings before any data are read
        self.settings = dict(fit or {})
        self._columns: dict[str, Any] = {}
        self._fitted: tuple[Events, Split, Dataset, Run] | None = None

    def fit(self, frame: Any, *, split: Split | None = None, **columns: Any) -> Recommender:
        """Learns from a polars, pandas or pyarrow frame, a file, a folder or a glob.

        Args:
            frame: the events.
            split: train / validation / test; by default by time, or the last events of each user.
            columns: what ``read_events`` takes: ``user=``, ``item=``, ``domain=``, ``time=``, ``label=``, ...

        Raises:
            DataError: the data are not what was declared.
        """
        events = _read(frame, columns)
        self.task = self.task or default_task(events.schema, get_model(self.spec.name).tasks)
        split = make_split(events, brought=split)
        dataset = encode(events, split, self.folder / "data", overwrite=True)
        for old in (self.folder / "run", self.folder / "adapted"):  # a new fit replaces the old one, as the data do
            shutil.rmtree(old, ignore_errors=True)
        how = How.of(self.settings)
        model = build(self.spec.name, dataset.schema, self.spec.args, seed=how.seed)
        run = fit(model, dataset, self.task, how, self.folder / "run", resume=False)
        self._columns, self._fitted = columns, (events, split, dataset, run)
        return self

    def adapt(self, frame: Any, *, split: Split | None = None, fit: dict[str, Any] | None = None, **columns: Any) -> Adapted:
        """Goes on to new domains: only what is theirs is trained, all other weights stay as they are, bit by bit.

        Args:
            frame: their events, and the old domains' events as far as the new domains' users' histories shall hold them.
            split: as in ``fit``.
            fit: settings of ``How`` for this training; by default those of ``fit``.
            columns: as in ``fit``, where they differ from what it was told.

        Returns:
            What was trained, and what it did to the old domains' scores.  ``recommend`` knows the new domains from here on, and
            the histories of this frame; ``ledger`` compares on this frame's events.

        Raises:
            ConfigError: not fitted yet, no new domain, or a model that cannot adapt (fitted in closed form).
            DataError: the data are not what was declared.
        """
        _, _, base, run = self._need()
        events = _read(frame, self._columns | columns)
        split = make_split(events, brought=split)
        folder = self.folder / "adapted" / str(len(base.schema.domains))  # the base is read from disk while it is adapted
        dataset = encode(events, split, folder / "data", overwrite=True, base=base)
        adapted = adapt(run, dataset, base, how=settings_of(run, fit), out=folder / "run")
        self._fitted = (events, split, dataset, adapted.run)
        return adapted

    def recommend(
        self, user: Any, domain: str, k: int = 10, *, items: Sequence[Any] | None = None, exclude_seen: bool = True
    ) -> pl.DataFrame:
        """The best items for a user in a domain, now: with the whole history that the data hold.

        Args:
            user: an id as in the data; an unknown one gets what suits an unknown user.
            domain: name of the domain.
            k: how many.
            items: rank these alone (ids); by default the domain's catalogue.
            exclude_seen: leave out what the user had in this domain.

        Returns:
            Columns ``item`` and ``score``, best first; at most k rows.

        Raises:
            ConfigError: no such domain, a k below 1, or not fitted yet.
        """
        _, _, dataset, run = self._need()
        if k < 1:
            raise ConfigError(f"k = {k}", "at least 1", "ask for one item or more")
        d = dataset.schema.domain_index(domain)
        code = dataset.user_vocabulary.encode([user])
        if items is None:
            found = retrieve(run.model, dataset, code, d, k=k, exclude_seen=exclude_seen, how=run.how)
            item, score = found.item[0][found.item[0] > 0], found.score[0][found.item[0] > 0]
            return pl.DataFrame({"item": dataset.item_vocabulary.decode(item), "score": score})
        ids = list(items)
        score = self._score(run, dataset, torch.tensor(code).long(), d, torch.tensor(dataset.item_vocabulary.encode(ids)).long())
        order = torch.argsort(score, descending=True, stable=True)[:k]
        return pl.DataFrame({"item": [ids[i] for i in order.tolist()], "score": score[order].numpy()})

    @staticmethod
    def _score(run: Run, dataset: Dataset, code: torch.Tensor, d: int, candidates: torch.Tensor) -> torch.Tensor:
        model = run.model.eval()
        time = _end_of_time() if dataset.schema.timed else None
        parts = []
        with torch.inference_mode():
            for block in candidates.split(BLOCK):
                batch = query_batch(dataset, model.needs, code.numpy(), torch.tensor([d]).numpy(), time, block[None].numpy())
                parts.append(model(batch).logit[0].float().cpu())
        return torch.cat(parts) if parts else torch.empty(0)

    def ledger(self, seeds: Sequence[int] = (0, 1, 2), *, say: Any = None) -> Ledger:
        """This model against its single-domain control and the shallow models, on the test part.

        Args:
            seeds: trainings per network.
            say: gets one line per step; silent by default.
        """
        events, split, _, _ = self._need()
        assert self.task is not None
        shallow = tuple(s for s in default_models(self.task) if get_model(s.name).shallow and s.name != self.spec.name)
        recipe = self._recipe((self.spec, *shallow), tuple(seeds))
        return compare(recipe, self.folder / "ledger", events=events, split=split, say=say or (lambda _: None)).ledger

    def _recipe(self, models: tuple[ModelSpec, ...], seeds: tuple[int, ...] = (0,)) -> Recipe:
        fit = {k: v for k, v in self.settings.items() if k not in ("seed", "domains")}
        return Recipe("recommender", "frame", models or (self.spec,), task=self.task.name if self.task else None, seeds=seeds, fit=fit)

    def _need(self) -> tuple[Events, Split, Dataset, Run]:
        if self._fitted is None:
            raise ConfigError("this recommender has learnt nothing yet", "a call of .fit(frame, ...) first", "call it")
        return self._fitted

    def __repr__(self) -> str:
        return f"Recommender({self.spec.name!r}, {'fitted' if self._fitted else 'not fitted'})"


def _read(frame: Any, columns: dict[str, Any]) -> Events:
    return table.load(frame, **columns).events if isinstance(frame, (str, Path)) else read_events(frame, **columns)


def _end_of_time() -> Any:
    import numpy as np

    return np.array([np.iinfo(np.int64).max])
