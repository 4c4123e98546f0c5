"""The quality of a new domain against its number of events: adapted, trained from scratch, and retrained on everything.

For every number n of training events the new domain keeps its first n, and all three are judged on the same later ones:

- ``adapted``: a model trained on the old domains, adapted (``isthmus.adapt``);
- ``from scratch``: the same model, trained on the new domain alone;
- ``retrained``: the same model, trained on all domains.

Times are those of training alone; the model of the old domains is trained once per seed, and its time is not the adaptation's.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from isthmus.adapt import adapt
from isthmus.data.columns import take_lists
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.events import ContextColumn, Events
from isthmus.data.split import TRAIN, UNUSED, Split
from isthmus.errors import ConfigError
from isthmus.fit import fit
from isthmus.how import How
from isthmus.insight import Insight
from isthmus.measure import measure
from isthmus.model import Model
from isthmus.run import build
from isthmus.schema import Domain
from isthmus.score import score
from isthmus.task import default_task

WAYS = ("adapted", "from scratch", "retrained")


def adaptation_curve(
    events: Events,
    split: Split,
    domain: str,
    sizes: Sequence[int],
    model: str,
    args: Mapping[str, Any] | None = None,
    *,
    how: How | None = None,
    adapt_how: How | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    say: Callable[[str], None] = print,
) -> pl.DataFrame:
    """Trains all three ways at every size.

    Args:
        events: of all domains.
        split: of all events; validation and test of the new domain stay whole.
        domain: the new one.
        sizes: numbers of its training events, the first ones in time (as they came, without times).
        model, args: name and hyper-parameters.
        how, adapt_how: settings of training, and of adapting; None: the defaults, and those of training.
        seeds: of the weights and the order of rows.
        say: gets one line per training.

    Returns:
        Columns events, way, seed, metric, value (test), seconds.

    Raises:
        ConfigError: no such domain, or a size that it does not have.
    """
    how = how or How()
    new = events.schema.domain_index(domain)
    own = np.flatnonzero((events.domain == new) & (split.part == TRAIN))
    own = own if events.time is None else own[np.argsort(events.time[own], kind="stable")]
    for size in sizes:
        if not 0 < size <= len(own):
            raise ConfigError(f"{size:,} events of {domain!r}", f"1 to {len(own):,}, its training events", "choose other sizes")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        base = _base(events, split, new, Path(folder) / "base")
        runs = {}
        for seed in seeds:
            built = build(model, base.schema, dict(args or {}), seed=seed)
            runs[seed] = fit(built, base, default_task(base.schema, built.tasks), dataclasses.replace(how, seed=seed))
        for size in sizes:
            part = split.part.copy()
            part[own[size:]] = UNUSED
            kept = dataclasses.replace(split, part=part)
            dataset = encode(events, kept, Path(folder) / str(size), base=base)
            for seed in seeds:
                settings = [dataclasses.replace(h, seed=seed) for h in (how, adapt_how or how)]
                index, clock = dataset.schema.domain_index(domain), time.perf_counter()
                for way, fitted in _ways(runs[seed], dataset, base, index, model, dict(args or {}), *settings):
                    seconds, metric = time.perf_counter() - clock, runs[seed].task.metrics[0]
                    value = _judged(fitted, dataset, index, metric, settings[0])
                    rows.append((size, way, seed, metric, value, seconds))
                    say(f"{size:,} events, seed {seed}, {way}: {metric} {value:.4f} in {seconds:.1f} s")
                    clock = time.perf_counter()
    return pl.DataFrame(rows, ["events", "way", "seed", "metric", "value", "seconds"], orient="row")


def summary(frame: pl.DataFrame) -> pl.DataFrame:
    """Means over seeds of what ``adaptation_curve`` gives.

    Returns:
        Columns events, the quality of each way, its seconds, ``share`` (the adapted gain over from scratch, of the retrained one's) and
        ``time`` (seconds of adapting over those of retraining).
    """
    means = frame.group_by("events", "way").agg(pl.col("value").mean(), pl.col("seconds").mean())
    wide = means.pivot("way", index="events", values=["value", "seconds"]).sort("events")
    wide = wide.rename({f"value_{way}": way for way in WAYS} | {f"seconds_{way}": f"s, {way}" for way in WAYS})
    gain, most = pl.col("adapted") - pl.col("from scratch"), pl.col("retrained") - pl.col("from scratch")
    ordered = wide.select("events", *WAYS, *(f"s, {way}" for way in WAYS))
    return ordered.with_columns(share=gain / most, time=pl.col("s, adapted") / pl.col("s, retrained"))


def curve_insight(frame: pl.DataFrame, domain: str) -> Insight:
    """The means over seeds as lines over the number of events, to be drawn by the report."""
    metric = frame["metric"][0]
    means = frame.group_by("events", "way").agg(pl.col("value").mean()).sort("way", "events")
    rows = means.select("events", "way", pl.col("value").alias(metric)).to_dicts()
    title = f"{domain}: quality against its number of training events"
    note = f"Test part, mean over {frame['seed'].n_unique()} seeds."
    return Insight("adaptation", title, "lines", rows, "events", "way", metric, note=note)


def _ways(
    run: Any, dataset: Dataset, base: Dataset, domain: int, model: str, args: dict[str, Any], how: How, adapt_how: How
) -> Iterator[tuple[str, Model]]:
    yield WAYS[0], adapt(run, dataset, base, how=adapt_how, compare=False).run.model
    for way, domains in ((WAYS[1], (domain,)), (WAYS[2], None)):
        settings = dataclasses.replace(how, domains=domains)
        yield way, fit(build(model, dataset.schema, args, seed=how.seed), dataset, run.task, settings).model


def _judged(model: Model, dataset: Dataset, domain: int, metric: str, how: How) -> float:
    frame = measure(score(model, dataset, "test", how=how, domains=(domain,)), (metric,), resamples=0)
    return float(frame.filter(pl.col("state") == "all", pl.col("domain") == dataset.schema.domain_names[domain])["value"].item())


def _base(events: Events, split: Split, new: int, path: Path) -> Dataset:
    """The data set of the old domains."""
    names = events.schema.domain_names
    old = [d for d in range(len(names)) if d != new]
    keep = np.isin(events.domain, old)
    place = np.full(len(names), -1)
    place[old] = np.arange(len(old))
    held = {name: getattr(events, name) for name in ("user", "item", "time", "label", "behaviour")}
    some = dataclasses.replace(
        events,
        schema=dataclasses.replace(events.schema, domains=tuple(Domain(names[d]) for d in old)),
        domain=place[events.domain[keep]].astype(events.domain.dtype),
        context={name: _cut(column, keep) for name, column in events.context.items()},
        shows=None if events.shows is None else [events.shows[d] for d in old],
        **{name: values[keep] for name, values in held.items() if values is not None},
    )
    lists = {name: found for name, found in split.candidates.items() if np.isin(found.domain, old).all()}
    return encode(some, Split(split.part[keep], split.rule, {"part_of": split.hash}, lists), path)


def _cut(column: ContextColumn, keep: np.ndarray) -> ContextColumn:
    """The entries to keep."""
    if column.index is None:
        return ContextColumn(column.values[keep])
    if column.offsets is None:
        return ContextColumn(column.values, column.index[keep])
    offsets, index = take_lists(column.offsets, column.index, np.flatnonzero(keep))
    return ContextColumn(column.values, index, offsets)
