"""Bundles that the tests of serving share."""

from __future__ import annotations

import pytest
from served import Served, run_of, small_data

from isthmus.data.dataset import Dataset
from isthmus.export.bundle import export


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return small_data(tmp_path_factory.mktemp("served") / "data")


@pytest.fixture(scope="session")
def chained(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """A retriever, and a ranker after it."""
    runs = (run_of("sasrec", dataset), run_of("mmoe", dataset))
    titles = {f"i{i}": f"Item number {i}" for i in range(60)}
    path = export(runs, dataset, tmp_path_factory.mktemp("chained") / "bundle", name="chained", titles=titles)
    return Served(dataset, runs, path)


@pytest.fixture(scope="session")
def alone(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Served:
    """A retriever alone."""
    run = run_of("sasrec", dataset)
    return Served(dataset, (run,), export([run], dataset, tmp_path_factory.mktemp("alone") / "bundle", name="alone", measured=False))
