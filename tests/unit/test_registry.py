"""One file each, found by its name: what is listed, what is imported when, and what the messages say."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from isthmus import metrics
from isthmus.data import sources
from isthmus.errors import ConfigError
from isthmus.layers.networks import get_network
from isthmus.models import get_model
from isthmus.registry import Registry

FILES = {
    "__init__": "",
    "_base": "class Animal:\n    pass\n",
    "cat": "from animals._base import Animal\nclass Cat(Animal):\n    pass\nclass Whisker:\n    pass\nclass _Lion(Cat):\n    pass\n",
    "ant": "from animals.cat import Cat\n",
    "pack": "from animals._base import Animal\nclass Wolf(Animal):\n    pass\nclass Dog(Animal):\n    pass\n",
}


@pytest.fixture
def animals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registry:
    """A package: one file with a class, one that only imports it, one with two."""
    folder = tmp_path / "animals"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / f"{name}.py").write_text(text)
    (folder / "notes.txt").write_text("no module")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [m for m in sys.modules if m.split(".")[0] == "animals"]:
        monkeypatch.delitem(sys.modules, name)
    return Registry("animals", str(folder / "__init__.py"), "animal")


def test_lists_public_files_in_order_and_imports_none(animals: Registry) -> None:
    assert list(animals.available()) == ["ant", "cat", "pack"]
    assert animals.available()["cat"].read_text() == FILES["cat"]
    assert not [m for m in sys.modules if m.startswith("animals")]


def test_finds_the_one_public_class_that_a_file_defines(animals: Registry) -> None:
    base = animals.module("cat").Animal
    assert animals.one_class(base, "cat").__name__ == "Cat"
    for name, n in (("ant", 0), ("pack", 2)):  # what is imported into a file is not its own
        with pytest.raises(ConfigError, match=rf"{name}\.py defines {n} animals"):
            animals.one_class(base, name)


def test_private_files_are_unknown(animals: Registry) -> None:
    with pytest.raises(
        ConfigError, match=r"unknown animal '_base'\n  expected: one of ant, cat, pack\n  to do: use one of: ant, cat, pack"
    ):
        animals.module("_base")


@pytest.mark.parametrize(
    ("find", "name", "message"),
    [
        (get_model, "mmoee", "unknown model 'mmoee'\n  expected: the name of a file in isthmus/models\n  to do: did you mean 'mmoe'?"),
        (
            get_network,
            "pl",
            "unknown network 'pl'\n  expected: the name of a file in isthmus/layers/networks\n  to do: did you mean 'ple'?",
        ),
        (metrics.get, "ndgc@10", "unknown metric 'ndgc@10'\n  expected: one of auc, calibration_error, coverage, .*did you mean 'ndcg'?"),
        (
            sources.get_source,
            "xmrek",
            "unknown source 'xmrek'\n  expected: one of amazon14, amazon14_man, amazon18, ciao, .*did you mean 'xmrec'?",
        ),
    ],
)
def test_what_an_unknown_name_is_told(find: object, name: str, message: str) -> None:
    assert callable(find)
    with pytest.raises(ConfigError, match="(?s)" + message.replace("?", r"\?")):
        find(name)
