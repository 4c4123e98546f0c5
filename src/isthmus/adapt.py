"""``adapt``: a trained model goes on to new domains, and what serves the old ones stays as it is.

The model grows (``isthmus.grow``), then only what is the new domains' own is trained, on their rows alone
(``Model.adaptation``).  The run that this leaves can be read, scored and resumed like any other; beside it, ``adapted.json`` says what
was trained and by how much the old domains' scores have changed.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import polars as pl
import torch
from torch import Tensor

from isthmus.errors import ConfigError, FitError, nearest
from isthmus.fit import fit
from isthmus.grow import Translated, grow
from isthmus.how import How
from isthmus.layers.growing import rows_of
from isthmus.measure import measure
from isthmus.model import Model
from isthmus.run import Run, load_run
from isthmus.score import score
from isthmus.scores import Scores
from isthmus.stages import Adaptation
from isthmus.storage import write_json

if TYPE_CHECKING:
    from isthmus.data.dataset import Dataset


@dataclass(frozen=True)
class Effect:
    """What adapting did to an old domain, on its validation rows.

    Attributes:
        domain: its name.
        metric: the task's first.
        before, after: its value; NaN where it is not defined.
        change: largest difference of two scores; 0: not a bit has changed.
        rows: scores compared.
    """

    domain: str
    metric: str
    before: float
    after: float
    change: float
    rows: int

    def __str__(self) -> str:
        if not self.change:
            return f"{self.domain}: unchanged ({self.rows:,} scores, {self.metric} {self.before:.4f})"
        moved = f"{self.metric} {self.before:.4f} -> {self.after:.4f}"
        return f"{self.domain}: scores changed by up to {self.change:.3g} ({self.rows:,} scores, {moved})"


@dataclass(frozen=True)
class Adapted:
    """An adaptation.

    Attributes:
        run: the finished run.
        domains: names of the new domains.
        trained: by weight, how many of its numbers were trained, and how many it has.
        frozen: numbers of all other weights.
        effects: one for each old domain that has validation rows.
    """

    run: Run
    domains: tuple[str, ...]
    trained: dict[str, tuple[int, int]]
    frozen: int
    effects: list[Effect]

    def to_text(self) -> str:
        """What was trained, what was not, and what it did to the old domains."""
        best = self.run.best
        lines = [f"{', '.join(self.domains)}: kept epoch {best.epoch + 1}, validation {best.metric} {best.value:.4f}", "trained:"]
        lines += [f"  {name}: {part:,} of {whole:,}" for name, part, whole in ((n, *sizes) for n, sizes in self.trained.items())]
        lines.append(f"frozen: {self.frozen:,} weights, and the rest of those above; checked bit by bit")
        lines += ["old domains, before and after:", *(f"  {effect}" for effect in self.effects)]
        return "\n".join(lines if self.effects else [*lines, "  no validation rows to compare"])


def adapt(
    run: Run | str | Path,
    dataset: Dataset,
    base: Dataset,
    *,
    domains: Sequence[str] | None = None,
    how: How | None = None,
    out: str | Path | None = None,
    resume: bool = False,
    compare: bool = True,
) -> Adapted:
    """Adapts a trained model to new domains.

    Args:
        run: trained on ``base``, or its folder; it is not changed.
        dataset: encoded with ``base=base``: the new domains' rows, and the old domains' events as far as histories shall hold them.
        base: what the run was trained on.
        domains: names of the new domains to train; None: all that the base does not have.
        how: settings; None: those of the run, on the new domains.
        out: folder of the new run; None: nothing is written.
        resume: go on from the folder's newest checkpoint.
        compare: score the old domains before and after.

    Raises:
        ConfigError: run, base and data set do not belong together, a domain that is not new, or a model that cannot adapt.
        FitError: the loss is not a number, or something moved that must not.
        CheckpointError, StorageError, KeyboardInterrupt: see ``isthmus.fit``.
    """
    run = run if isinstance(run, Run) else load_run(run)
    chosen = _new_domains(run, dataset, base, domains)
    grown = grow(run.model, dataset)
    adaptation = Adaptation(chosen, (base.schema.item.trained, dataset.schema.item.trained))
    before = {name: value.detach().clone() for name, value in grown.state_dict().items()}
    new = fit(grown, dataset, run.task, how or settings_of(run), out, resume=resume, adaptation=adaptation)
    _check_frozen(new.model, before, adaptation)
    trained, frozen = _sizes(new.model, adaptation)
    names = tuple(dataset.schema.domain_names[d] for d in chosen)
    adapted = Adapted(new, names, trained, frozen, _effects(run, new, dataset, base) if compare else [])
    if out is not None:
        write_json(Path(out) / "adapted.json", _facts(adapted))
    return adapted


def settings_of(run: Run, changes: Mapping[str, Any] | None = None) -> How:
    """Those of a run, with changes, and for whatever domains it is adapted to.

    Raises:
        ConfigError: an unknown name or a value out of range.
    """
    return How.of(dataclasses.asdict(run.how) | {"domains": None, "targets": None} | dict(changes or {}))


def _new_domains(run: Run, dataset: Dataset, base: Dataset, domains: Sequence[str] | None) -> tuple[int, ...]:
    """Indices of the domains to train."""
    trained, known = run.model.schema.fingerprint(), base.schema.fingerprint()
    if trained != known:
        raise ConfigError(f"a run of schema {trained} and a base of schema {known}", "the data that the run was trained on", "give these")
    if dataset.manifest.get("base") != known:
        came = f"data that extend {dataset.manifest.get('base', 'nothing')}"
        raise ConfigError(came, f"data that extend the base, {known}", "encode them with base=, or use isthmus adapt")
    fresh = dataset.schema.domain_names[len(base.schema.domains) :]
    if not fresh:
        raise ConfigError(f"no domain beside {base.schema.domain_names}", "a new one", "give events of a new domain")
    for name in domains or ():
        if name not in fresh:
            raise ConfigError(f"{name!r} is no new domain", f"one of {fresh}", nearest(name, fresh))
    return tuple(dataset.schema.domain_index(name) for name in fresh if domains is None or name in domains)


def _check_frozen(model: Model, before: dict[str, Tensor], adaptation: Adaptation) -> None:
    """Everything but the new domains' own parts must be as it was."""
    rows = rows_of(model, adaptation.domains, adaptation.mask(model))
    for name, now in model.state_dict().items():
        old, mask = before[name].to(now.device), rows.get(name)
        if name in rows and mask is None:
            continue
        if mask is not None:
            now, old = now[~mask.to(now.device)], old[~mask.to(now.device)]
        if not torch.equal(now.nan_to_num(), old.nan_to_num()):
            raise FitError(f"{name} has moved, although only new domains were trained", "the same bits", "report it: a layer is at fault")


def _sizes(model: Model, adaptation: Adaptation) -> tuple[dict[str, tuple[int, int]], int]:
    """Numbers trained by weight, and the numbers of all other weights."""
    weights = {p: name for name, p in model.named_parameters()}
    masks: dict[str, tuple[int, int]] = {}
    for stage in adaptation.stages(model):
        masks |= {weights[p]: (p.numel(), p.numel()) for p in stage.weights or ()}
        masks |= {weights[p]: (int(mask.sum()) * p.numel() // len(p), p.numel()) for p, mask in (stage.rows or {}).items()}
    return masks, sum(p.numel() for p, name in weights.items() if name not in masks)


def _effects(run: Run, new: Run, dataset: Dataset, base: Dataset) -> list[Effect]:
    """Old against new model on the base's own validation rows and histories."""
    limit = run.how.eval_queries if run.task.ranked else run.how.eval_rows
    offsets = base.part("valid").offsets
    metric, found = run.task.metrics[0], []
    for d, name in enumerate(base.schema.domain_names):
        if offsets[d + 1] == offsets[d]:
            continue
        models = (run.model, Translated(new.model, base, dataset))
        old, now = (score(m, base, "valid", task=run.task, how=run.how, domains=(d,), limit=limit) for m in models)
        found.append(Effect(name, metric, _value(old, metric, name), _value(now, metric, name), _change(old, now), len(old)))
    return found


def _value(scores: Scores, metric: str, domain: str) -> float:
    frame = measure(scores, (metric,), resamples=0).filter(pl.col("state") == "all", pl.col("domain") == domain)
    return math.nan if frame.is_empty() or frame["value"][0] is None else float(frame["value"][0])


def _change(old: Scores, now: Scores) -> float:
    """The largest difference of two scores; infinite where other items have come among the first places."""
    if old.kind != "full":
        return float((old.frame["score"] - now.frame["score"]).abs().to_numpy().max())
    both = old.frame.join(now.frame, on=["row", "group", "item"], how="full", suffix="_now")
    return float(both.select((pl.col("score") - pl.col("score_now")).abs().fill_null(math.inf).max()).item())


def _facts(adapted: Adapted) -> dict[str, object]:
    def plain(value: object) -> object:
        return None if isinstance(value, float) and not math.isfinite(value) else value

    effects = [{name: plain(value) for name, value in dataclasses.asdict(effect).items()} for effect in adapted.effects]
    return {"domains": adapted.domains, "trained": adapted.trained, "frozen": adapted.frozen, "effects": effects}
