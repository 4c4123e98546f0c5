"""``export``: trained runs and the data they were trained on -> a bundle; see ``isthmus.serve.bundle`` for what is in it."""

from __future__ import annotations

import datetime
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from torch import Tensor

import isthmus
from isthmus import arrow, checkpoint
from isthmus.checkpoint import save_tensors
from isthmus.data.dataset import Dataset
from isthmus.errors import ConfigError
from isthmus.export.card import Licences, card, in_words
from isthmus.export.graphs import write_graph
from isthmus.layers.table import Table, halved
from isthmus.model import Model, Retriever, scoring
from isthmus.retrieve import build_index
from isthmus.run import Run
from isthmus.serve.bundle import FORMAT, MANIFEST, facts_of, fingerprint
from isthmus.serve.engine import FETCH
from isthmus.serve.profiles import Profiles
from isthmus.storage import whole_folder, write_json

Say = Callable[[str], None]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def export(
    runs: Sequence[Run],
    dataset: Dataset,
    out: str | Path,
    *,
    name: str | None = None,
    titles: Mapping[Any, str] | None = None,
    ledger: pl.DataFrame | None = None,
    licences: Licences | None = None,
    measured: bool = True,
    half: bool = False,
    overwrite: bool = False,
    say: Say = lambda _: None,
) -> Path:
    """Writes a bundle, whole or not at all.

    Args:
        runs: one run; or a retriever's, and that of a model that ranks what it finds.
        dataset: that they were trained on.
        out: the folder.
        name: of the bundle; None: the models' names.
        titles: a text to show for each item id.
        ledger: a comparison's verdicts, for the card.
        licences: of model and data, for the card.
        measured: measure the last run on the test part, for the card.
        half: embedding tables and item vectors in half precision: half of the disk and memory, scores within about 1e-3 of their size.
        overwrite: replace a folder that is there.
        say: gets one line per step.

    Returns:
        The folder.

    Raises:
        ConfigError: no runs or too many, a first of two that is no retriever, runs of other data, a name that is no file's, or
            numbers too large for half precision.
        StorageError: the folder exists, the disk is full, or it cannot be written.
    """
    _check(runs, dataset)
    kinds = [run.model.__class__.__module__.rpartition(".")[2] for run in runs]
    name = name or "-".join(kinds)
    if NAME.fullmatch(name) is None:
        raise ConfigError(f"the name {name!r}", "letters, digits, '.', '_' and '-', 64 at most", "choose another one")
    schema = dataset.schema
    with whole_folder(out, overwrite=overwrite) as path:
        say("users, items and what users did")
        _ids(dataset, path, titles)
        _profiles(dataset).save(path / "profiles")
        for d in range(len(schema.domains)):
            item = dataset.catalogue(d, "test").astype(np.int64)
            arrow.write(path / "catalogue" / f"{d}.arrow", {"item": item, "count": dataset.popularity(d)[item].astype(np.int64)})
        stages = [_stage(run, dataset, path / str(n), n == len(runs) - 1, kinds[n], half, say) for n, run in enumerate(runs)]
        if measured:
            say("measuring the test part for the card")
        facts = card(runs, kinds, dataset, name, ledger=ledger, licences=licences or Licences(), measured=measured)
        write_json(path / "card.json", facts)
        (path / "README.md").write_text(in_words(facts), encoding="utf-8")
        files = {str(file.relative_to(path)): facts_of(file) for file in sorted(path.rglob("*")) if file.is_file()}
        manifest = {
            "format": FORMAT,
            "isthmus": isthmus.__version__,
            "name": name,
            "made": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "schema": schema.to_dict(),
            "scalers": dataset.manifest["scalers"]["context"],
            "titles": titles is not None,
            "stages": stages,
            "files": files,
            "fingerprint": fingerprint(files),
        }
        write_json(path / MANIFEST, manifest)
    return Path(out)


def _check(runs: Sequence[Run], dataset: Dataset) -> None:
    if len(runs) not in (1, 2):
        raise ConfigError(f"{len(runs)} runs", "one, or a retriever and a model that ranks what it finds", "leave some out")
    if len(runs) == 2 and not isinstance(runs[0].model, Retriever):
        came = f"{type(runs[0].model).__name__} as the first of two stages"
        raise ConfigError(came, "a retriever, whose score is a dot product", "give the retriever first")
    for run in runs:
        if run.model.schema.fingerprint() != dataset.schema.fingerprint():
            came = f"a run of schema {run.model.schema.fingerprint()} with data of schema {dataset.schema.fingerprint()}"
            raise ConfigError(came, "the data that the run was trained on", "pass that folder, or train again")


def _ids(dataset: Dataset, path: Path, titles: Mapping[Any, str] | None) -> None:
    """Ids, categories and titles."""
    for file in ("user.ids.arrow", "item.ids.arrow"):
        shutil.copyfile(dataset.path / file, path / file)
    for where, fields in (("context", dataset.schema.context), ("item", dataset.schema.item.fields)):
        for n, field in enumerate(fields):
            wanted = ["ids"] if where == "context" else ["ids", "values", *(["offsets"] if field.kind == "multi" else [])]
            for kind in wanted if field.kind != "numeric" else ():
                (path / where).mkdir(exist_ok=True)
                shutil.copyfile(dataset.path / where / f"{n}.{kind}.arrow", path / where / f"{n}.{kind}.arrow")
    if titles is not None:
        known = {str(item): title for item, title in titles.items()}
        ids = dataset.item_vocabulary.ids.cast(pl.String)
        arrow.write_series(path / "titles.arrow", pl.Series("id", [known.get(one) or one for one in ids], dtype=pl.String))


def _profiles(dataset: Dataset) -> Profiles:
    """The events of all users in order of time."""
    history = dataset.history
    start = history.start.take(np.searchsorted(history.pair, np.arange(dataset.schema.user.size + 1) * history.domains))
    place = np.repeat(start[:-1], np.diff(start)) + history.event[1:]
    columns = {name: getattr(history, name) for name in ("item", "time", "behaviour", "label")}
    taken: dict[str, Any] = {name: None if column is None else column.take(place) for name, column in columns.items()}
    if taken["time"] is not None:
        taken["time"] = taken["time"].astype(np.int64)
    return Profiles(start - 1, domain=history.domain[1:].astype(np.int16), **taken)


def _stage(run: Run, dataset: Dataset, folder: Path, last: bool, kind: str, half: bool, say: Say) -> dict[str, Any]:
    """Writes a model; returns what the manifest says of it."""
    model, how, domains = run.model, run.how, dataset.schema.domain_names
    folder.mkdir()
    weights = folder / "model.safetensors"
    save_tensors(_weights(model, half), weights)
    with scoring(model):
        graphs = []
        for d, domain in enumerate(domains):
            say(f"{kind}: graph of {domain}")
            graphs.append(write_graph(model, d, folder / f"{d}.onnx", weights, length=how.history_length))
    retriever = isinstance(model, Retriever)
    if retriever:
        for d, domain in enumerate(domains):
            index = build_index(model, dataset, d, k=FETCH, how=how)
            say(f"{kind}: {len(index):,} items of {domain}: {index.note}")
            (index.half() if half else index).save(folder / "index" / str(d))
    return {
        "name": "rank" if last and (not retriever or folder.name != "0") else "retrieve",
        "model": kind,
        "task": run.task.name,
        "needs": asdict(model.needs),
        "length": how.history_length,
        "cross": how.crosses(len(domains)),
        "user": any(graph.user for graph in graphs),
        "bounds": list(dataset.schema.rating_range) if run.task.name == "rating" and dataset.schema.rating_range else None,
        "retriever": retriever,
        "half": half,
    }


def _weights(model: Model, half: bool) -> dict[str, Tensor]:
    """What is stored of a model; its embedding tables in half precision where wanted."""
    tables = {f"{name}.weight" for name, module in model.named_modules() if half and isinstance(module, Table)}
    return {name: halved(name, tensor) if name in tables else tensor for name, tensor in checkpoint.weights(model).items()}
