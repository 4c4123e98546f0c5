"""Every source found by file name: has a load, says where to get its data, and says so again when the data are missing."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from isthmus.data import sources
from isthmus.data.sources import ENVIRONMENT, Loaded
from isthmus.errors import SourceError

NAMES = sorted(sources.available())
PUBLIC = [name for name in NAMES if name not in ("table", "sql", "world")]


def test_sources_are_found_by_file_name() -> None:
    assert {"table", "sql", "xmrec", "ciao", "epinions", "movielens", "douban", "world"} <= set(NAMES)
    assert not [name for name in NAMES if name.startswith("_")]


@pytest.mark.parametrize("name", NAMES)
def test_has_a_documented_load_and_an_origin(name: str) -> None:
    module = sources.get_source(name)
    assert module.__doc__
    assert len(module.ORIGIN) > 20
    assert "Args:" in module.load.__doc__
    assert "Raises:" in module.load.__doc__
    signature = inspect.signature(module.load, eval_str=True)
    assert signature.return_annotation is Loaded
    keyword = [p for p in list(signature.parameters.values())[1:] if p.kind is not p.KEYWORD_ONLY]
    assert not keyword, "all arguments but the first are named"


@pytest.mark.parametrize("name", PUBLIC)
def test_can_be_loaded_without_arguments_from_the_folder_of_all_data(name: str) -> None:
    first = next(iter(inspect.signature(sources.get_source(name).load).parameters.values()))
    assert (first.name, first.default) == ("path", None)


@pytest.mark.parametrize("name", PUBLIC)
def test_missing_data_are_named_with_their_origin(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = sources.get_source(name)
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    with pytest.raises(SourceError, match=ENVIRONMENT) as unset:
        module.load()
    monkeypatch.setenv(ENVIRONMENT, str(tmp_path))
    with pytest.raises(SourceError, match=str(tmp_path)) as absent:
        module.load()
    with pytest.raises(SourceError, match="nowhere is not a folder") as wrong:
        module.load(tmp_path / "nowhere")
    (tmp_path / name).mkdir()
    with pytest.raises(SourceError, match=str(tmp_path / name)) as empty:
        module.load()
    for caught in (unset, absent, wrong, empty):
        assert module.ORIGIN in str(caught.value)
