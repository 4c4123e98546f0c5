"""Recipes as TOML, read strictly: an unknown key is an error that names the nearest right one.

``docs/recipes.md`` has every key.  Relative paths are taken from the recipe's folder, and ``$NAME`` in a path is an environment variable.
"""

from __future__ import annotations

import os
import re
import tomllib
from pathlib import Path
from typing import Any

from isthmus.cell import Cell
from isthmus.errors import ConfigError, nearest
from isthmus.line import SINGLE, ModelSpec
from isthmus.paper import Paper
from isthmus.recipe import Recipe

PAPER = ("title", "metric", "values", "note")
CELL = ("name", "data", "split", "paper")
TYPES: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "title": (str,),
    "task": (str,),
    "seeds": (list,),
    "metrics": (list,),
    "ledger_metrics": (list,),
    "refit": (bool,),
    "sampled": (int,),
    "resamples": (int,),
    "data": (dict,),
    "split": (dict,),
    "fit": (dict,),
    "models": (list,),
    "paper": (dict,),
    "cells": (list,),
}
TOP = tuple(TYPES)


def read_recipe(path: str | Path) -> Recipe:
    """Reads a recipe.

    Raises:
        ConfigError: the file is missing, is not TOML, or has a key, name or type that is not right.
    """
    path = Path(path)
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing", "a recipe in TOML", "check the path; recipes/ holds examples") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}", "a recipe in TOML", "mend the line it names; recipes/ holds examples") from error
    return parse_recipe(raw, where=str(path), folder=path.parent, name=path.stem)


def published(folder: Path | None = None) -> dict[str, str]:
    """Recipes that reproduce a paper: name -> title of the published table.

    Args:
        folder: to look in; None: ``recipes/`` of the checkout, or of the working folder.

    Raises:
        ConfigError: a recipe that is not TOML, or there is no such folder (an installed package brings no recipes).
    """
    found: dict[str, str] = {}
    for path in sorted((folder or recipe_folder()).glob("*.toml")):
        try:
            raw = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path} is not TOML: {error}", "a recipe in TOML", "mend the line it names") from error
        if isinstance(raw.get("paper"), dict):
            found[path.stem] = str(raw["paper"].get("title", ""))
    return found


def read_published(name: str) -> Recipe:
    """A recipe that reproduces a paper, by its name in ``recipes/`` or by its path.

    Raises:
        ConfigError: no such recipe (names the nearest one), or it has no [paper] section; see also ``read_recipe``.
    """
    path = Path(name)
    if not name.endswith(".toml"):
        known = published()
        path = recipe_folder() / f"{name}.toml"
        if not path.exists():
            raise ConfigError(f"no recipe {name!r} in {path.parent}", f"one of {', '.join(known)}, or a file", nearest(name, known))
    recipe = read_recipe(path)
    if recipe.paper is None:
        raise ConfigError(f"{path} has no [paper] section", "the published values to compare with", f"isthmus compare {path}")
    return recipe


def recipe_folder() -> Path:
    """``recipes/`` of the checkout, else of the working folder.

    Raises:
        ConfigError: there is none.
    """
    for folder in (Path(__file__).parents[2] / "recipes", Path("recipes")):
        if folder.is_dir():
            return folder
    raise ConfigError(
        "no folder recipes/ here", "the folder recipes/ of Isthmus' source", "get the source, go there, or name a recipe by its path"
    )


def parse_recipe(raw: dict[str, Any], *, where: str = "recipe", folder: Path = Path(), name: str = "recipe") -> Recipe:
    """A recipe from plain values.

    Args:
        raw: what TOML gave.
        where: named in errors.
        folder: relative paths start here.
        name: used when the recipe names none.

    Raises:
        ConfigError: a key, name or type that is not right.
    """
    _known(raw, TOP, where)
    for key, value in raw.items():
        if not isinstance(value, TYPES[key]):
            raise ConfigError(f"{where}: {key} = {value!r}", f"a value of type {TYPES[key][0].__name__}", "see `isthmus compare --help`")
    data = dict(raw.get("data", {}))
    if "source" not in data:
        raise ConfigError(f"{where}: [data] names no source", 'source = "table" (your own files), or a public set', "add it")
    split = dict(raw.get("split", {}))
    optional = {key: raw[key] for key in ("title", "task", "refit", "sampled", "resamples", "fit") if key in raw}
    optional |= {key: _names(raw[key], f"{where}: {key}") for key in ("metrics", "ledger_metrics") if key in raw}
    if "seeds" in raw:
        if not all(isinstance(s, int) and s >= 0 for s in raw["seeds"]):
            raise ConfigError(f"{where}: seeds = {raw['seeds']!r}", "whole numbers from 0", "seeds = [0, 1, 2]")
        optional["seeds"] = tuple(raw["seeds"])
    return Recipe(
        name=raw.get("name", name),
        source=data.pop("source"),
        source_args=_paths(data, folder, where),
        split=split.pop("rule", None),
        split_args=split,
        models=tuple(_model(m, f"{where}: models[{i}]") for i, m in enumerate(raw.get("models", []))),
        paper=_paper(raw["paper"], f"{where}: [paper]") if "paper" in raw else None,
        cells=tuple(_cell(c, folder, f"{where}: cells[{i}]") for i, c in enumerate(raw.get("cells", []))),
        **optional,
    )


def _paper(raw: dict[str, Any], where: str) -> Paper:
    """The [paper] section; labels, metric and domains are checked against the recipe and the data."""
    _known(raw, PAPER, where)
    for key in ("title", "metric"):
        if not isinstance(raw.get(key), str):
            raise ConfigError(f"{where}: {key} = {raw.get(key)!r}", "a text", f'{key} = "..."')
    values = raw.get("values", {})
    if not isinstance(values, dict) or not all(isinstance(v, dict) and v for v in values.values()):
        raise ConfigError(f"{where}: values = {values!r}", "a table of domains for each label", "[paper.values.<label>]")
    return Paper(raw["title"], raw["metric"], values, str(raw.get("note", "")))


def _cell(raw: Any, folder: Path, where: str) -> Cell:
    """One [[cells]] table; whether source and rule take its keys is seen when they are called, before anything is trained."""
    if not isinstance(raw, dict) or not isinstance(raw.get("name"), str):
        raise ConfigError(f"{where}: {raw!r}", 'a table with name = "..."', "name the cell")
    _known(raw, CELL, where)
    data, split, paper = ({**_table(raw, key, where)} for key in ("data", "split", "paper"))
    source, rule = (found.pop(key, None) for found, key in ((data, "source"), (split, "rule")))
    for key, value in (("data.source", source), ("split.rule", rule)):
        if not isinstance(value, str | None):
            raise ConfigError(f"{where}: {key} = {value!r}", "a text", f'{key} = "..."')
    for metric, values in paper.items():
        if not isinstance(values, dict):
            raise ConfigError(f"{where}: paper.{metric} = {values!r}", "a table of lines for each metric", f"paper.{metric}.<label> = ...")
    return Cell(raw["name"], source, _paths(data, folder, where), rule, split, paper)


def _table(raw: dict[str, Any], key: str, where: str) -> dict[str, Any]:
    value = raw.get(key, {})
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: {key} = {value!r}", "a table", f"write {key}.<name> = ...")
    return value


def _names(raw: list[Any], where: str) -> tuple[str, ...]:
    """A list of texts."""
    if not all(isinstance(name, str) for name in raw):
        raise ConfigError(f"{where} = {raw!r}", "a list of texts", '["..."]')
    return tuple(raw)


def _model(raw: Any, where: str) -> ModelSpec:
    """One [[models]] table: its own keys, and the rest are hyper-parameters (checked against the model later)."""
    if not isinstance(raw, dict) or not isinstance(raw.get("name"), str):
        raise ConfigError(f"{where}: {raw!r}", 'a table with name = "<model>"', "`isthmus models` lists the names")
    raw = dict(raw)
    fit, grid, alone = (_table(raw, key, where) for key in ("fit", "grid", "alone"))
    if isinstance(training := grid.get("fit"), dict):
        grid = {key: values for key, values in grid.items() if key != "fit"} | {f"fit.{key}": v for key, v in training.items()}
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(f"{where}: grid.{key} = {values!r}", "a list of values to choose from", f"grid.{key} = [..., ...]")
    control, per_target, against = raw.pop("control", SINGLE), raw.pop("per_target", False), raw.pop("against", [])
    if not isinstance(per_target, bool):
        raise ConfigError(f"{where}: per_target = {per_target!r}", "true or false", "per_target = true")
    if not isinstance(against, list):
        raise ConfigError(f"{where}: against = {against!r}", "a list of lines", 'against = ["<label>"]')
    args = {key: value for key, value in raw.items() if key not in ("name", "label", "fit", "grid", "alone")}
    control = None if control == "none" else control
    return ModelSpec(raw["name"], raw.get("label", ""), args, grid, fit, control, per_target, _names(against, f"{where}: against"), alone)


def _paths(data: dict[str, Any], folder: Path, where: str) -> dict[str, Any]:
    """The arguments of a source, paths filled in."""
    return {key: _path(value, folder, where) if key in ("path", "users", "items") else value for key, value in data.items()}


def _path(value: Any, folder: Path, where: str) -> Any:
    """A path from the recipe's folder, environment variables filled in."""
    if isinstance(value, list):
        return [_path(v, folder, where) for v in value]
    if not isinstance(value, str):
        return value
    full = os.path.expandvars(value)
    missing = re.search(r"\$\{?(\w+)", full)
    if missing:
        raise ConfigError(
            f"{where}: {value!r} names the environment variable {missing[1]}, which is not set", "a folder", f"export {missing[1]}=..."
        )
    return full if os.path.isabs(full) else str(folder / full)


def _known(raw: dict[str, Any], names: tuple[str, ...], where: str) -> None:
    for key in raw:
        if key not in names:
            raise ConfigError(f"{where}: unknown key {key!r}", f"one of {', '.join(names)}", nearest(key, names))
