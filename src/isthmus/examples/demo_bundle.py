"""The demo's world as a service: a retriever for the whole catalogue, the comparison's best network after it, and titles."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from isthmus.data.dataset import Dataset
from isthmus.export.bundle import export
from isthmus.export.card import Licences
from isthmus.export.given import data_of, ledger_of
from isthmus.fit import fit
from isthmus.how import How
from isthmus.parts import JOINT, part_folder
from isthmus.run import build, load_run
from isthmus.task import get_task

RANKER = "star"
KINDS = ("amber", "brass", "cedar", "coral", "ivory", "jade", "linen", "maple", "onyx", "pearl", "slate", "velvet")
THINGS = ("atlas", "basket", "candle", "drum", "easel", "flute", "globe", "hammock", "kettle", "lantern", "puzzle", "teapot", "violin")


def demo_bundle(folder: Path, say: Callable[[str], None]) -> Path:
    """Exports the bundle of a finished demo, unless it is there already.

    Args:
        folder: of the demo.
        say: gets one line per step.
    """
    out = folder / "bundle"
    if out.exists():
        return out
    place = part_folder(folder, RANKER, JOINT, 0) / "run"
    dataset = Dataset.load(data_of(place))
    say("training a retriever (two_tower)")
    how = How(epochs=4, batch_size=512, progress=False, device="cpu", threads=1)
    retriever = fit(build("two_tower", dataset.schema, {}, seed=0), dataset, get_task("retrieval"), how, folder / "retriever", resume=True)
    licences = Licences("Apache-2.0", "made up by isthmus.data.synthetic")
    runs = [retriever, load_run(place)]
    return export(
        runs,
        dataset,
        out,
        name="demo",
        titles=titles(dataset.item_vocabulary.ids.to_list()),
        licences=licences,
        say=say,
        ledger=ledger_of(folder),
    )


def titles(items: Sequence[str | int]) -> dict[str | int, str]:
    """Made-up names, each once."""
    names = [f"{kind} {thing}" for thing in THINGS for kind in KINDS]
    return {
        item: names[n % len(names)].capitalize() + ("" if n < len(names) else f" {n // len(names) + 1}") for n, item in enumerate(items)
    }
