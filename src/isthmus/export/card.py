"""The card of a bundle: what it was made from, how good it is by domain, whether sharing helped, and who may use it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import polars as pl

from isthmus.data.dataset import PART_NAMES, Dataset
from isthmus.measure import measure
from isthmus.model import Retriever
from isthmus.run import Run
from isthmus.score import score

QUESTIONS = 2_000  # by domain; of full rankings and rows judged for the card
NOT_STATED = "not stated"


@dataclass(frozen=True, slots=True)
class Licences:
    """Who may use it, in the owner's words.

    Attributes:
        model, data: licences of the weights, and of the data they were learnt from.
    """

    model: str = NOT_STATED
    data: str = NOT_STATED


def card(
    runs: Sequence[Run],
    kinds: Sequence[str],
    dataset: Dataset,
    name: str,
    *,
    ledger: pl.DataFrame | None,
    licences: Licences,
    measured: bool,
) -> dict[str, Any]:
    """The card as plain values.

    Args:
        runs, kinds: the stages, and the names of their models.
        dataset: that they were trained on.
        name: of the bundle.
        ledger: a comparison's verdicts, or None.
        licences: of model and data.
        measured: measure each run on the test part.
    """
    manifest, schema = dataset.manifest, dataset.schema
    rows = {part: dict(zip(schema.domain_names, manifest["rows"][part], strict=True)) for part in PART_NAMES}
    return {
        "name": name,
        "domains": list(schema.domain_names),
        "data": {"fingerprint": schema.fingerprint(), "split": manifest["split"], "rows": rows, "label": schema.label},
        "models": [_model(run, kind, dataset, measured) for run, kind in zip(runs, kinds, strict=True)],
        "ledger": None if ledger is None else json.loads(ledger.write_json()),
        "licences": asdict(licences),
    }


def _model(run: Run, kind: str, dataset: Dataset, measured: bool) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "model": kind,
        "paper": type(run.model).paper,
        "task": run.task.name,
        "retriever": isinstance(run.model, Retriever),
        "weights": sum(p.numel() for p in run.model.parameters()),
        "settings": run.model.args,
        "fit": {name: value for name, value in asdict(run.how).items() if name not in ("progress", "tensorboard")},
        "validation": run.best.to_dict(),
        "test": None,
    }
    if measured and sum(dataset.manifest["rows"]["test"]):
        scores = score(run.model, dataset, "test", task=run.task, how=run.how, limit=QUESTIONS)
        found = measure(scores, run.task.metrics).filter(pl.col("state") == "all")
        facts["test"] = {"questions": f"{QUESTIONS:,} a domain at most", "kind": scores.kind, "values": json.loads(found.write_json())}
    return facts


def in_words(facts: dict[str, Any]) -> str:
    """The card as Markdown."""
    rows = facts["data"]["rows"]
    lines = [f"# {facts['name']}", "", "| domain | " + " | ".join(f"{part} rows" for part in rows) + " |", "|---|" + "---:|" * len(rows)]
    lines += [f"| {domain} | " + " | ".join(f"{rows[part][domain]:,}" for part in rows) + " |" for domain in facts["domains"]]
    lines += ["", f"Split: `{json.dumps(facts['data']['split'], sort_keys=True)}`, labels: {facts['data']['label']}, "]
    lines[-1] += f"data of schema `{facts['data']['fingerprint']}`."
    for one in facts["models"]:
        job = "retrieves and scores by dot products" if one["retriever"] else "scores candidates"
        lines += ["", f"## {one['model']}", "", f"Task {one['task']}; {job}; {one['weights']:,} weights. {one['paper']}", ""]
        lines += [f"Settings: `{json.dumps(one['settings'], sort_keys=True)}`"]
        if one["test"] is not None:
            lines += ["", f"Test part ({one['test']['kind']}, {one['test']['questions']}), with 95 % intervals over users:", ""]
            lines += _table(one["test"]["values"], ["domain", "metric", "value", "low", "high"])
    if facts["ledger"] is not None:
        names = list(facts["ledger"][0]) if facts["ledger"] else []
        lines += ["", "## Did sharing help?", "", *_table(facts["ledger"], names)]
    lines += ["", "## Licences", "", f"Model: {facts['licences']['model']}. Data: {facts['licences']['data']}.", ""]
    return "\n".join(lines)


def _table(rows: list[dict[str, Any]], names: list[str]) -> list[str]:
    def text(value: Any) -> str:
        return f"{value:.4f}" if isinstance(value, float) else "" if value is None else str(value)

    names = [name for name in names if rows and name in rows[0]]
    head = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    return head + ["| " + " | ".join(text(row[name]) for name in names) + " |" for row in rows]
