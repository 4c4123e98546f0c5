"""The command line as a user meets it: processes, exit codes, messages."""

import json
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from command import isthmus
from isthmus.cli import _settings
from isthmus.data.dataset import Dataset
from isthmus.data.synthetic import make_world
from isthmus.errors import ConfigError

COMMANDS = (
    "demo",
    "doctor",
    "prepare",
    "fit",
    "look",
    "adapt",
    "adapt-curve",
    "compare",
    "score",
    "measure",
    "report",
    "models",
    "reproduce",
    "retrieve",
    "tune",
)


@pytest.fixture(scope="module")
def events(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = make_world(domains=2, users=120, items=60, events=1500, relatedness=0.9, seed=1)
    path = tmp_path_factory.mktemp("own") / "events.parquet"
    columns = {"user": "uid", "item": "iid", "domain": "market", "time": "ts", "label": "click"}
    world.events.frame().rename(columns).select(columns.values()).write_parquet(path)
    return path


OWN = ("--user", "uid", "--item", "iid", "--domain", "market", "--time", "ts", "--label", "click")


def test_help_names_every_command_and_stays_light() -> None:
    text = isthmus("--help")
    for command in COMMANDS:
        assert command in text
    code = "import sys, isthmus.cli; print([m for m in ('torch', 'polars', 'numpy', 'scipy', 'matplotlib', 'pyarrow') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


def test_preparing_knows_no_torch(events: Path, tmp_path: Path) -> None:
    do = "import sys; sys.argv[0] = 'isthmus'; import isthmus.cli as c; c.app(standalone_mode=False); print('torch' in sys.modules)"
    words = [sys.executable, "-c", do, "prepare", str(events), *OWN, "-o", str(tmp_path / "data")]
    assert subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()[-1] == "False"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_a_help_with_an_example(command: str) -> None:
    assert "Example" in isthmus(command, "--help")


def test_wrong_use_exits_with_2(events: Path, tmp_path: Path) -> None:
    isthmus("frobnicate", ok=2)
    assert "did you mean 'uid'" in isthmus("doctor", events, "--user", "uidd", *OWN[2:], ok=1)
    recipe = tmp_path / "r.toml"
    recipe.write_text('nmae = "x"')
    assert "did you mean 'name'" in isthmus("compare", recipe, ok=2)
    assert "missing" in isthmus("compare", tmp_path / "none.toml", ok=2)


def test_a_missing_and_a_truncated_file(events: Path, tmp_path: Path) -> None:
    assert "none.parquet" in isthmus("doctor", tmp_path / "none.parquet", *OWN, ok=1)
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(events.read_bytes()[:2000])
    assert "cut.parquet" in isthmus("prepare", cut, *OWN, "-o", tmp_path / "data", ok=1)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cut.parquet"]


def test_models_and_doctor_as_json(events: Path) -> None:
    names = {row["name"] for row in json.loads(isthmus("models", "--json"))}
    networks = {"dnn", "shared_bottom", "cross_stitch", "mmoe", "ple", "star"}
    assert names >= {"popularity", "item_knn", "ease", "mf", "cmf", "emcdr", "sscdr", "ptupcdr"} | networks
    isthmus("models")
    assert json.loads(isthmus("doctor", events, *OWN, "--json"))
    assert "overlap" in isthmus("doctor", events, *OWN).lower()


def test_the_walk_step_by_step(events: Path, tmp_path: Path) -> None:
    isthmus("prepare", events, *OWN, "-o", "data", cwd=tmp_path)
    assert "exists already" in isthmus("prepare", events, *OWN, "-o", "data", cwd=tmp_path, ok=1)
    isthmus("fit", "data", "--model", "dnn", "-o", "run", "--epochs", 2, "--set", "dim=4", "--set", "seed=5", cwd=tmp_path)
    assert json.loads((tmp_path / "run" / "run.json").read_text())["how"]["seed"] == 5
    assert "--seed 1 and --set seed=2" in isthmus("fit", "data", "-o", "run2", "--seed", 1, "--set", "seed=2", cwd=tmp_path, ok=2)
    assert "expected: a whole number" in isthmus("fit", "data", "-m", "dnn", "-o", "run2", "--set", "dim=wide", cwd=tmp_path, ok=2)
    assert "did you mean 'hidden'" in isthmus("fit", "data", "-m", "dnn", "-o", "run2", "--set", "hiden=[8]", cwd=tmp_path, ok=2)
    isthmus("score", "run", "--data", "data", "-o", "scores.parquet", cwd=tmp_path)
    assert "auc" in isthmus("measure", "scores.parquet", "--metric", "auc", "-o", "measures.parquet", cwd=tmp_path)
    assert pl.read_parquet(tmp_path / "measures.parquet")["metric"].to_list()[0] == "auc"
    market = pl.read_parquet(events)["market"][0]
    said = isthmus("retrieve", "run", "--data", "data", "--domain", market, "--user", "u0", "--user", "nobody", "-k", 3, cwd=tmp_path)
    assert "6 rows" in said
    assert pl.read_parquet(tmp_path / "top.parquet")["rank"].to_list() == [1, 2, 3] * 2
    assert "did you mean" in isthmus("retrieve", "run", "--data", "data", "--domain", market + "x", cwd=tmp_path, ok=2)
    assert "no dot product" in isthmus("retrieve", "run", "--data", "data", "--domain", market, "--index", "ivf", cwd=tmp_path, ok=2)


def test_more_of_a_source(events: Path, tmp_path: Path) -> None:
    own = tmp_path / "kinds.parquet"
    frame = pl.read_parquet(events).with_columns(kind=pl.lit("view"))
    frame.write_parquet(own)
    frame.select("iid", brand=pl.lit("x")).unique().write_csv(tmp_path / "items.csv")
    more = ("--with", "behaviour=kind", "--with", f"items={tmp_path / 'items.csv'}")
    isthmus("prepare", own, *OWN, *more, "-o", tmp_path / "data")
    schema = Dataset.load(tmp_path / "data").schema
    assert schema.behaviours == ("view",)
    assert [f.name for f in schema.item.fields] == ["brand"]
    assert json.loads(isthmus("doctor", "world", "--with", "kind=table2", "--with", "settings={scale=0.02}", "--json"))["domains"]
    said = isthmus("doctor", own, *OWN, "--with", "behavior=kind", ok=2)
    assert "has no argument 'behavior'" in said
    assert "did you mean 'behaviour'" in said
    recipe = Path(__file__).parents[2] / "recipes" / "xmrec.toml"
    assert "write it into the recipe's [data]" in isthmus("compare", recipe, "--with", "market=s1", ok=2)


def test_a_new_domain(tmp_path: Path) -> None:
    frame = make_world(domains=3, users=120, items=60, events=1500, seed=1).events.frame()
    frame.filter(pl.col("domain") != "domain2").write_parquet(tmp_path / "old.parquet")
    frame.write_parquet(tmp_path / "all.parquet")
    own, quick = ("--time", "time", "--label", "label"), ("--set", "lr=0.01", "--set", "batch_size=256", "--set", "epochs=2")
    isthmus("prepare", "old.parquet", *own, "-o", "data", cwd=tmp_path)
    isthmus("fit", "data", "-m", "star", "-o", "old", *quick, cwd=tmp_path)
    wrong = isthmus("adapt", "old", "all.parquet", "--base", "data", "--domain", "domain1", *own, "-o", "new", cwd=tmp_path, ok=2)
    assert "'domain1' is no new domain" in wrong
    text = isthmus("adapt", "old", "all.parquet", "--base", "data", "--domain", "domain2", *own, "-o", "new", *quick, cwd=tmp_path)
    assert "domain0: unchanged" in text
    assert "network.indicator.weight: 16 of 64" in text
    assert text == isthmus("adapt", "old", "all.parquet", "--base", "data", *own, "-o", "new", *quick, "--resume", cwd=tmp_path)
    curve = ("adapt-curve", "all.parquet", "--domain", "domain2", "--size", 100, "--size", 600, "-m", "dnn", "--seeds", 1)
    assert "from scratch" in isthmus(*curve, *own, "-o", "curve", *quick, cwd=tmp_path)
    assert (tmp_path / "curve" / "curve.svg").read_text().startswith("<svg")
    isthmus("score", "new", "--data", "new/data", "-o", "scores.parquet", cwd=tmp_path)
    assert set(pl.read_parquet(tmp_path / "scores.parquet")["domain"]) == {"domain0", "domain1", "domain2"}


def test_compare_own_file_twice_runs_nothing_again(events: Path, tmp_path: Path) -> None:
    arguments = ("compare", events, *OWN, "--model", "popularity", "--model", "dnn", "--seeds", 1, "-o", "out")
    first = isthmus(*arguments, cwd=tmp_path)
    assert "done before" not in first
    assert "ledger" in first
    marks = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("part.json")}
    second = isthmus(*arguments, cwd=tmp_path)
    assert second.count("done before") == len(marks) == 3
    assert marks == {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("part.json")}
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<svg" in page
    assert "http://" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace("http://creativecommons.org", "")
    assert "dnn (single-domain)" in isthmus("report", "out", cwd=tmp_path)


def test_reproduce_lists_finds_and_runs(events: Path, tmp_path: Path) -> None:
    listed = isthmus("reproduce", cwd=tmp_path)
    assert "adi_table3" in listed
    assert "CIKM 2022, Table 3" in listed
    assert "did you mean 'adi_table3'" in isthmus("reproduce", "adi_tabel3", ok=2)
    recipe = tmp_path / "mine.toml"
    data = f'[data]\nsource = "table"\npath = "{events}"\nuser = "uid"\nitem = "iid"\ndomain = "market"\ntime = "ts"\nlabel = "click"\n'
    line = '[[models]]\nname = "popularity"\ncontrol = "none"\n'
    recipe.write_text('metrics = ["auc"]\n' + data + line)
    assert "no [paper] section" in isthmus("reproduce", recipe, ok=2)
    markets = pl.read_parquet(events)["market"].unique().sort().to_list()
    values = "".join(f'"{market}" = {value}\n' for market, value in zip([*markets, "all"], (0.001, 0.999, 0.99), strict=True))
    recipe.write_text(recipe.read_text() + f'[paper]\ntitle = "Somebody, Table 3"\nmetric = "auc"\n[paper.values.popularity]\n{values}')
    text = isthmus("reproduce", "mine.toml", "-o", "out", "--seeds", 1, cwd=tmp_path)
    assert "Somebody, Table 3" in text
    assert f"popularity: above the paper in {markets[0]}; below the paper in {markets[1]} and on average" in text
    assert "0.9990" in text
    assert pl.read_parquet(tmp_path / "out" / "paper.parquet")["domain"].to_list() == [*markets, "all"]
    assert "Beside the paper" in (tmp_path / "out" / "report.html").read_text()


def test_cells_are_reproduced_one_by_one_and_as_a_whole(events: Path, tmp_path: Path) -> None:
    data = f'[data]\nsource = "table"\npath = "{events}"\nuser = "uid"\nitem = "iid"\ndomain = "market"\ntime = "ts"\nlabel = "click"\n'
    lines = "".join(f'[[models]]\nname = "popularity"\nlabel = "{label}"\ncontrol = "none"\n' for label in ("all", "again"))
    paper = '[paper]\ntitle = "Somebody, Table 3"\nmetric = "auc"\n'
    cells = "".join(f'[[cells]]\nname = "last {n} %"\nsplit.test = 0.{n}\npaper.auc.all = 0.999\n' for n in (10, 30))
    recipe = tmp_path / "mine.toml"
    recipe.write_text('metrics = ["auc"]\n' + data + '[split]\nrule = "global_time"\n' + lines + paper + cells)
    one = isthmus("reproduce", recipe, "-o", "out", "-m", "all", "--cell", "last 30 %", cwd=tmp_path)
    assert "last 30 %" in one
    assert "last 10 %" not in one
    assert "did you mean 'last 10 %'" in isthmus("compare", recipe, "--cell", "last 10%", "-o", "out", ok=2, cwd=tmp_path)
    whole = isthmus("reproduce", recipe, "-o", "out", cwd=tmp_path)
    assert whole.count("done before") == 1
    assert "all: below the paper in 'last 10 %' and in 'last 30 %'" in whole
    again = isthmus("report", "out", cwd=tmp_path)
    assert again[again.index("auc, test part") : again.index("report:")] in whole
    links = [str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").glob("cells/*/report.html")]
    assert len(links) == 2
    page = (tmp_path / "out" / "report.html").read_text()
    assert all(f'href="{link}"' in page for link in links)


def test_settings_are_read_as_values() -> None:
    assert _settings(["lr=2e-3", "experts=8", "hidden=[8, 4]", "sampler=uniform"]) == {
        "lr": 2e-3,
        "experts": 8,
        "hidden": [8, 4],
        "sampler": "uniform",
    }
    with pytest.raises(ConfigError, match="name=value"):
        _settings(["lr"])
