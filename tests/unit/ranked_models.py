"""One of the processes that ``test_shards`` starts: trains every model with tables, whole and split, and tells how far they are apart."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch

from isthmus.data.dataset import Dataset
from isthmus.fit import How, build, fit
from isthmus.layers import table
from isthmus.models import available
from isthmus.task import default_task

SINGLE = ("sli_rec",)  # computes in float32 whatever the weights are


def trained(name: str, dataset: Dataset, sharded: bool) -> dict[str, Any]:
    """Weights and the last loss of a model, trained with every table a large one; {} where it has none."""
    torch.manual_seed(0)
    model = build(name, dataset.schema, {})
    if not any(isinstance(module, table.Table) and module.sparse for module in model.modules()):
        return {}
    how = How(epochs=1, batch_size=200, device="cpu", threads=1, progress=False, sharded=sharded)
    run = fit(model, dataset, default_task(dataset.schema, model.tasks), how)
    kept = {key: value for key, value in run.model.state_dict().items() if value.is_floating_point() and value.numel()}
    return {**kept, "loss": torch.tensor(run.log[-1]["losses"]["total"])}


def main(data: str, out: str) -> None:
    """Writes the largest difference by model."""
    dataset, found = Dataset.load(data), dict[str, float]()
    table.DENSE_LIMIT = 0
    for name in available():
        torch.set_default_dtype(torch.float32 if name in SINGLE else torch.float64)
        whole, split = (trained(name, dataset, sharded) for sharded in (False, True))
        if whole:
            found[name] = max(float((whole[key] - split[key]).abs().nan_to_num().max()) for key in whole)
    if os.environ["RANK"] == "0":
        Path(out).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
