"""Looking inside from the command line, and example users in a comparison's report."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from command import isthmus
from isthmus.data.events import Events, read_events
from isthmus.data.synthetic import make_world
from isthmus.experiment import ModelSpec, Recipe, compare
from isthmus.report import write_page

QUICK = ("--epochs", 1, "--set", "batch_size=256", "--set", "dim=4", "--set", "hidden=[8]")


@pytest.fixture(scope="module")
def frame() -> pl.DataFrame:
    world = make_world(("books", "films"), users=60, items=40, events=900, label="rating", relatedness=0.9, seed=1)
    kinds = np.random.default_rng(0).choice(["buy", "view"], len(world.events))
    return world.events.frame().with_columns(behaviour=pl.Series(kinds))


def read(frame: pl.DataFrame) -> Events:
    names = ("user", "item", "domain", "time", "label", "behaviour")
    return read_events(frame, **{name: name for name in names}, label_kind="rating")  # type: ignore[arg-type]


def test_look_from_the_command_line(frame: pl.DataFrame, tmp_path: Path) -> None:
    frame.write_parquet(tmp_path / "events.parquet")
    isthmus("prepare", "events.parquet", "--time", "time", "--label", "label", "-o", "data", cwd=tmp_path)
    isthmus("fit", "data", "-m", "dacdr", "-o", "run", *QUICK, cwd=tmp_path)
    asked = ("look", "run", "--data", "data")
    averages = isthmus(*asked, "-o", "all.html", cwd=tmp_path)
    assert "on average" in averages
    assert "Attention over even attention" in averages
    user = frame["user"][-1]
    one = isthmus(*asked, "--user", user, "--domain", "films", "-o", "one.html", cwd=tmp_path)
    assert f"user {user}" in one
    assert "page: one.html" in one
    page = (tmp_path / "one.html").read_text()
    assert page.count("<svg") == 2
    assert not any(word in page for word in ("<script", "<link", "src=", "@import"))
    rows = [line.split() for line in isthmus(*asked, "--user", user, cwd=tmp_path).splitlines()]
    assert {tuple(row[:1]) for row in rows} >= {("books",), ("films",)}
    assert ["films"] in [row[:1] for row in map(str.split, one.splitlines())]
    assert ["books"] not in [row[:1] for row in map(str.split, one.splitlines())], "one target"
    assert f"did you mean {user!r}" in isthmus(*asked, "--user", user + "x", cwd=tmp_path, ok=2)
    assert "did you mean 'films'" in isthmus(*asked, "--user", user, "--domain", "flims", cwd=tmp_path, ok=2)
    isthmus("fit", "data", "-m", "dnn", "-o", "dnn", *QUICK, cwd=tmp_path)
    assert "one of: dacdr" in isthmus("look", "dnn", "--data", "data", "--user", user, cwd=tmp_path, ok=2)


def test_a_report_has_example_users(frame: pl.DataFrame, tmp_path: Path) -> None:
    fit = {"epochs": 1, "batch_size": 256, "threads": 1, "progress": False}
    models = (ModelSpec("popularity", control=None), ModelSpec("dacdr", args={"dim": 4, "hidden": [8]}, control=None))
    recipe = Recipe("x", "frame", models, task="rating", seeds=(0,), fit=fit, resamples=200)
    found = compare(recipe, tmp_path, events=read(frame), say=lambda _: None)
    titles = [look.title for look in found.insights()["dacdr"]]
    assert len(titles) == 3 + 3 * 3
    assert len({title.rpartition(", user ")[2] for title in titles[3:]}) == 3
    page = write_page(found, tmp_path / "report.html").read_text()
    assert all(page.count(f"{title} <span") == 1 for title in titles)
