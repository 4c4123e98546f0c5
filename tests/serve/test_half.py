"""Bundles in half precision: half the bytes, the same lists but for near ties."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from parity import questions
from safetensors import safe_open
from scipy import stats
from served import run_of

from isthmus import Ask, load
from isthmus.data.dataset import Dataset
from isthmus.errors import ConfigError
from isthmus.export.bundle import export
from isthmus.index import Index
from isthmus.layers.table import Table
from isthmus.run import Run

TOLERANCE = 5e-3  # of the spread of a list's scores; a float16 has 11 binary digits: each number is within 5e-4 of itself


@pytest.fixture(scope="module", params=["mmoe", pytest.param("two_tower", marks=pytest.mark.slow)])
def run(request: pytest.FixtureRequest, dataset: Dataset) -> Run:
    """With tables of some size, as after many epochs: scores differ clearly."""
    run = run_of(request.param, dataset)
    for module in run.model.modules():
        if isinstance(module, Table):
            module.weight.data[1:] = torch.randn(module.weight[1:].shape, generator=torch.Generator().manual_seed(0))
    return run


@pytest.fixture(scope="module")
def bundles(run: Run, dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """In single precision, and in half."""
    folder = tmp_path_factory.mktemp("half")
    return [export([run], dataset, folder / name, measured=False, half=name == "half") for name in ("whole", "half")]


def table_bytes(path: Path, run: Run) -> tuple[int, int]:
    """What a bundle's file holds of the tables, and of all else."""
    names = {f"{name}.weight" for name, module in run.model.named_modules() if isinstance(module, Table)}
    with safe_open(path / "0" / "model.safetensors", "pt") as file:
        size = {name: file.get_tensor(name).nbytes for name in file.keys()}  # noqa: SIM118
    return sum(size[name] for name in size.keys() & names), sum(size[name] for name in size.keys() - names)


def test_tables_take_half_and_lists_stay(run: Run, dataset: Dataset, bundles: list[Path]) -> None:
    whole, half = bundles
    (before, rest), (after, same) = table_bytes(whole, run), table_bytes(half, run)
    assert (after, same) == (before // 2, rest)
    assert after > 0
    engine = load(half)
    for question in questions(run, dataset):
        ask = Ask(
            user=question.user, time=question.time, context=question.context, candidates=list(question.scores), k=len(question.scores)
        )
        (answer,) = engine.recommend([ask], question.domain)
        found = {one.item: one.score for one in answer.items}
        expected = np.array([question.scores[item] for item in found])
        score = np.array(list(found.values()))
        assert np.abs(score - expected).max() <= TOLERANCE * np.ptp(expected)
        assert stats.kendalltau(score, expected).statistic > 0.9


def test_scores_are_computed_in_single_precision(run: Run, dataset: Dataset, bundles: list[Path]) -> None:
    """Half a table's rounding, none of sums and products: the graph equals torch's with the same rounded tables."""
    path = bundles[1]
    before = [(m, m.weight.detach().clone()) for m in run.model.modules() if isinstance(m, Table)]
    for module, weight in before:
        module.weight.data = weight.half().float()
    try:
        engine, (question, *_) = load(path), questions(run, dataset)
        ask = Ask(
            user=question.user, time=question.time, context=question.context, candidates=list(question.scores), k=len(question.scores)
        )
        found = {one.item: one.score for one in engine.recommend([ask], question.domain)[0].items}
    finally:
        for module, weight in before:
            module.weight.data = weight
    exact = 1e-5 if not engine.bundle.stages[0].indexes else 5e-4  # of a retriever the items' vectors are rounded too
    size = max(1.0, *map(abs, question.scores.values()))
    assert all(abs(found[item] - score) <= exact * size for item, score in question.scores.items())
    inputs = onnxruntime.InferenceSession(str(path / "0" / "0.onnx")).get_outputs()
    assert [one.type for one in inputs] == ["tensor(float)"]


def test_an_index_in_half_precision_finds_the_same(tmp_path: Path) -> None:
    vectors, queries = torch.randn(3000, 16), torch.randn(40, 16)
    index = Index.build(vectors, item=np.arange(3000))
    index.half().save(tmp_path / "half")
    index.save(tmp_path / "whole")
    size = [(tmp_path / name / "vectors.safetensors").stat().st_size for name in ("half", "whole")]
    assert size[0] < 0.51 * size[1]
    half = Index.load(tmp_path / "half")
    assert half.vectors.dtype == torch.float16
    found, score = half.search(queries, 20)
    item, exact = index.search(queries, 20)
    assert score.dtype == np.float32
    np.testing.assert_allclose(score, exact, rtol=2e-3, atol=2e-3)
    assert np.mean([len(np.intersect1d(a, b)) for a, b in zip(found, item, strict=True)]) > 19.5


def test_numbers_beyond_half_precision_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"(?s)1e\+06.*65,504.*--half"):
        Index.build(torch.tensor([[1e6]])).half()
