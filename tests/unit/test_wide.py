"""Tables in the terminal: whatever its width, no value is cut, and none is lost."""

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.text import Text

from isthmus.data.synthetic import make_world
from isthmus.experiment import Comparison, ModelSpec, Recipe, compare
from isthmus.report import print_report
from isthmus.report.wide import Sheet, fitted, print_sheet


def text_of(sheet: Sheet, width: int) -> str:
    console = Console(width=width, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    print_sheet(sheet, console, "numbers [of all]")
    console.file.close()
    return console.export_text()


def sheet(rows: list[str], columns: list[str], value: str = "[green]▲[/] [bold]0.{:04d}[/] [dim]±0.012[/]") -> Sheet:
    values = tuple((name, tuple(value.format(100 * r + c) for c in range(len(columns)))) for r, name in enumerate(rows))
    return Sheet("model", "domain", tuple(columns), values)


def heads(drawn: Sheet, width: int) -> list[list[str]]:
    return [[str(column.header) for column in table.columns] for table in fitted(drawn, width)]


def test_one_table_while_it_fits_then_folded_headings_then_turned_then_blocks() -> None:
    """A value takes 15 cells; names at most 5; two between columns."""
    drawn = sheet(["dnn", "mf"], ["s1", "s2", "a long name of it"])
    assert heads(drawn, 60) == [["model", "s1", "s2", "a long name of it"]]  # 5 + 2 + 15 + 2 + 15 + 2 + 17 = 58
    assert heads(drawn, 58) == [["model", "s1", "s2", "a long name of it"]]
    assert [len(found) for found in heads(drawn, 57)] == [4]
    assert "a long name of\n" in text_of(drawn, 57).replace(" \n", "\n")  # its heading in two lines
    assert heads(drawn, 55) == [["domain", "dnn", "mf"]]  # turned: 17 + 2 + 15 + 2 + 15 = 51
    wide = sheet([f"m{i}" for i in range(5)], [f"d{i}" for i in range(4)])
    assert heads(wide, 45) == [["model", "d0", "d1"], ["model", "d2", "d3"]]  # turned it would be three tables


@given(
    rows=st.lists(st.text(st.characters(min_codepoint=33, max_codepoint=0x2FF), min_size=1, max_size=40), min_size=1, max_size=6),
    columns=st.lists(st.text(st.sampled_from("ab 漢[]/"), min_size=1, max_size=30), min_size=1, max_size=20),
    width=st.integers(40, 200),
)
def test_every_value_stands_whole_on_a_line(rows: list[str], columns: list[str], width: int) -> None:
    drawn = sheet(rows, columns)
    text = text_of(drawn, width)
    for _, values in drawn.rows:
        for value in values:
            assert text.count(Text.from_markup(value).plain) == 1
    for line in text.splitlines():
        assert Text(line).cell_len <= width


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    names = [f"category {i}" for i in range(18)]
    world = make_world(names, users=60, items=30, events=400, seed=3)
    labels = [("popularity", None), ("popularity, all categories together", "popularity"), ("a third one of them", "popularity")]
    models = tuple(ModelSpec("popularity", label, {"across": bool(control)}, control=control) for label, control in labels)
    recipe = Recipe("x", "frame", models, resamples=100)
    found = compare(recipe, tmp_path_factory.mktemp("many"), events=world.events, say=lambda _: None)
    assert isinstance(found, Comparison)
    return found


@pytest.mark.parametrize("width", [80, 120, 400])
def test_eighteen_domains(many: Comparison, width: int, tmp_path: Path) -> None:
    with (tmp_path / "out").open("w") as file:
        console = Console(width=width, record=True, file=file)
        print_report(many, console)
    text = console.export_text()
    assert "…" not in text
    assert "..." not in text
    shown = many.measures.filter((pl.col("part") == "test") & (pl.col("state") == "all") & (pl.col("domain") != "all"))
    assert shown["domain"].n_unique() == 18
    for value in shown["value"].drop_nulls():
        assert f"{value:.4f}" in text
    for low, high, difference in many.ledger.frame.filter(pl.col("domain") != "all").select("low", "high", "difference").iter_rows():
        assert f"[{low:+.4f}, {high:+.4f}]" in text
        assert f"{difference:+.4f}" in text
