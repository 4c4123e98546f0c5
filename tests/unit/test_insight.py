"""Insights: plain values that survive JSON, and that a figure can be drawn of."""

import json
from typing import Any

import pytest

from isthmus.errors import ConfigError
from isthmus.insight import Insight
from isthmus.report.looks import POINTS, look

CELLS: list[dict[str, float | str]] = [
    {"field": f, "domain": d, "weight": w} for f, d, w in (("brand", "s1", 0.25), ("price", "s1", 1.5), ("brand", "s2", -0.75))
]
HEAT: dict[str, Any] = {"name": "w", "title": "Weights", "kind": "heatmap", "rows": CELLS, "x": "field", "y": "domain", "value": "weight"}


def test_to_json_and_back() -> None:
    insight = Insight(**HEAT, note="mean over rows")
    assert Insight.from_dict(json.loads(json.dumps(insight.to_dict()))) == insight


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "heat"}, "did you mean 'heatmap'"),
        ({"rows": []}, "without rows"),
        ({"x": "feild"}, "did you mean 'field'"),
        ({"y": ""}, "no column ''"),
        ({"value": "domain"}, "a finite number"),
        ({"rows": [{**CELLS[0], "weight": float("nan")}]}, "row 0: weight = nan"),
        ({"rows": [CELLS[0], {**CELLS[1], "field": ["brand"]}]}, "row 1: field"),
        ({"kind": "lines"}, "field = 'brand'"),
        ({"kind": "scatter"}, "field = 'brand'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Insight(**{**HEAT, **change})


def test_a_heat_map_writes_its_numbers_and_leaves_missing_cells_empty() -> None:
    svg = look(Insight(**HEAT))
    for text in ("brand", "price", "s1", "s2", "0.25", "1.50", "-0.75", "weight"):
        assert f">{text}<" in svg
    assert "nan" not in svg


def test_what_a_number_is_held_against_stands_in_brackets_beside_it() -> None:
    rows: list[dict[str, float | str]] = [{**row, "even": 0.5} for row in CELLS]
    insight = Insight(**{**HEAT, "rows": rows}, beside="even")
    assert ">0.25 (0.50)<" in look(insight)
    assert Insight.from_dict(json.loads(json.dumps(insight.to_dict()))) == insight
    kept = Insight(**HEAT).to_dict()
    del kept["beside"]  # as older files have it
    assert Insight.from_dict(kept) == Insight(**HEAT)
    with pytest.raises(ConfigError, match="row 1: even = 'much'"):
        Insight(**{**HEAT, "rows": [rows[0], {**rows[1], "even": "much"}]}, beside="even")


@pytest.mark.parametrize("kind", ["bars", "lines"])
def test_series_are_named_and_a_single_one_is_not(kind: Any) -> None:
    rows: list[dict[str, float | str]] = [{"epoch": e, "model": m, "mass": e * 0.1} for m in ("adi", "$dnn$") for e in (2, 1, 3)]
    both = look(Insight("n", "t", kind, rows, x="epoch", y="model", value="mass"))
    assert ">adi<" in both
    assert ">$dnn$<" in both
    assert ">adi<" not in look(Insight("n", "t", kind, rows[:3], x="epoch", y="", value="mass"))


def test_points_have_colours_by_name_or_number_and_many_become_one_image() -> None:
    def points(number: int, value: str) -> Insight:
        rows: list[dict[str, float | str]] = [{"a": i, "b": -i, "label": f"L{i % 2}", "age": i} for i in range(number)]
        return Insight("n", "t", "scatter", rows, x="a", y="b", value=value)

    assert ">L0<" in look(points(20, "label"))
    assert ">age<" in look(points(20, "age"))
    assert ">L0<" not in look(points(20, ""))
    assert len(look(points(POINTS + 2000, "label"))) < 60_000
