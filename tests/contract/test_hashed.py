"""Models whose ids share rows keep the contract: alone as in company, saved, grown, adapted, and drawn as graphs."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from test_graphs import SAME, ask
from test_graphs import draw as draw_graph
from test_growth import draw, logits, moved
from worlds import shake

from isthmus.data.dataset import Dataset
from isthmus.errors import CheckpointError, ConfigError
from isthmus.fit import fit
from isthmus.grow import grow
from isthmus.how import How
from isthmus.layers.features import EntityFields
from isthmus.layers.from_data import fill
from isthmus.layers.growing import rows_of
from isthmus.model import Model
from isthmus.models import available
from isthmus.run import build, load_run
from isthmus.schema import Entity, Field, HashedIds
from isthmus.stages import Adaptation
from isthmus.task import default_task

ROWS = {"user_rows": 32, "item_rows": 28}
QUICK = ("mmoe", "two_tower")


def sides(name: str, dataset: Dataset) -> set[str]:
    """Of which entities a model has tables."""
    return {m.entity.name for m in build(name, dataset.schema).modules() if isinstance(m, EntityFields)}


def hashed(name: str, dataset: Dataset) -> Model:
    """A model every part of which has a say."""
    model = build(name, dataset.schema, {f"{side}_rows": ROWS[f"{side}_rows"] for side in sides(name, dataset)})
    fill(model, dataset)
    with torch.random.fork_rng(), torch.no_grad():
        shake(model)
    return model.eval()


def models() -> list[object]:
    return [pytest.param(name, marks=[] if name in QUICK else [pytest.mark.slow]) for name in sorted(available())]


@pytest.mark.parametrize("name", models())
def test_the_contract_is_kept(name: str, pair: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    base, every = pair
    if not sides(name, base):
        with pytest.raises(ConfigError, match=r"(?s)item_rows.*embedding table"):
            build(name, base.schema, {"item_rows": 28})
        return
    model = hashed(name, base)
    assert {m.ids.each for m in model.modules() if isinstance(m, EntityFields)} == {2}
    batch = draw(base, model)
    batch.user[0], batch.item[0, 0] = base.schema.user.size - 1, 1  # who was never seen
    assert logits(model, batch).isfinite().all()
    grown = grow(model, every)
    assert grown.schema.item.hashed == model.schema.item.hashed
    torch.testing.assert_close(logits(grown, moved(batch, base, every)), logits(model, batch), rtol=1e-5, atol=1e-5)
    folder = tmp_path / "graph"
    folder.mkdir()
    drawn = draw_graph(model, 0, folder)
    asked = ask(base, model, 0, 6, 9)
    assert drawn.differ(asked) <= SAME * max(1.0, float(np.abs(drawn.torch(asked)).max()))


@pytest.mark.parametrize("name", QUICK)
def test_a_run_is_trained_kept_and_resumed_with_its_rows(name: str, pair: tuple[Dataset, Dataset], tmp_path: Path) -> None:
    base, _ = pair
    how = How(epochs=1, batch_size=64, device="cpu", threads=1, progress=False)
    model = build(name, base.schema, ROWS)
    before = [m.table.weight.detach().clone() for m in model.modules() if isinstance(m, EntityFields)]
    run = fit(model, base, default_task(base.schema, model.tasks), how, tmp_path / "run")
    after = [m.table.weight for m in run.model.modules() if isinstance(m, EntityFields)]
    assert all((a != b).any() for a, b in zip(after, before, strict=True))
    again = load_run(tmp_path / "run").model
    assert again.schema == model.schema
    assert torch.equal(logits(again, draw(base, again)), logits(run.model, draw(base, again)))
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(CheckpointError, match="item_rows"):
        fit(build(name, base.schema, {**ROWS, "item_rows": 32}), base, run.task, how, tmp_path / "run", resume=True)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["schema"]["user"]["hashed"]["rows"] == 32


def test_adapting_leaves_what_old_ids_share_as_it_was(pair: tuple[Dataset, Dataset]) -> None:
    base, every = pair
    grown = grow(hashed("mmoe", base), every)
    batch = moved(draw(base, grown), base, every)
    scores, fresh = logits(grown, batch), logits(grown, draw(every, grown, domains=(2,)))
    adaptation = Adaptation((2,), (base.schema.item.trained, every.schema.item.trained))
    how = How(epochs=2, batch_size=16, lr=0.01, patience=None, device="cpu", threads=1, progress=False)
    run = fit(grown, every, default_task(every.schema, grown.tasks), how, adaptation=adaptation)
    assert torch.equal(logits(run.model, batch), scores)
    assert not torch.equal(logits(run.model, draw(every, grown, domains=(2,))), fresh)


def test_new_items_have_rows_of_their_own() -> None:
    fields = (Field("group", "categorical", 5),)
    layer = EntityFields(Entity("item", fields, 64, 66, HashedIds(32, 60)), 3)
    layer.field_rows[:60] = layer.starts[0] + 2
    layer.field_rows[60:] = layer.starts[0] + 3  # a category that the new ones alone have
    new = torch.zeros(66, dtype=torch.bool)
    new[60:64] = True
    mask = rows_of(layer, (), new)["table.weight"]
    assert mask is not None
    assert mask.nonzero()[:, 0].tolist() == [32, 33, 34, 35, layer.starts[0] + 3]
