"""Weights, optimiser states and the place in the training on disk: safetensors and JSON, never a pickle.

A checkpoint is a folder ``checkpoint-<number>`` that appears whole or not at all::

    model.safetensors       the weights now
    best.safetensors        the stage's best weights so far, if there are any
    optimiser.safetensors   the optimisers' tensors, ``<optimiser>.<weight>.<key>``, and the random generators' states
    state.json              the place in the training, and the optimisers' numbers

The newest one is written before older ones are removed, so there is always one to go on from.  Tables that are split over ranks are
whole in all files: rank 0 writes them block by block, and each rank takes its own rows out of the files' memory maps.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from isthmus.errors import CheckpointError, SourceError
from isthmus.shards import ByRows, Shards
from isthmus.storage import read_json, sweep, whole_file, whole_folder, write_json

PREFIX = "checkpoint-"
FORMAT = 1

Optimisers = list[torch.optim.Optimizer]

UNSPLIT = Shards()
NAMES = {  # of types in safetensors, in the order in which its files have them
    torch.int64: "I64",
    torch.float64: "F64",
    torch.float32: "F32",
    torch.int32: "I32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def weights(model: nn.Module) -> dict[str, Tensor]:
    """The state of a model, each tensor once: of names that share memory only the first is kept."""
    aliases = _aliases(model)
    return {name: tensor for name, tensor in model.state_dict(keep_vars=True).items() if name not in aliases}


def save_weights(model: nn.Module, path: Path, shards: Shards = UNSPLIT) -> None:
    """Writes ``weights(model)`` as safetensors, whole or not at all.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    save_tensors({name: shards.whole(tensor) for name, tensor in weights(model).items()}, path)


def load_weights(model: nn.Module, tensors: Mapping[str, Tensor], shards: Shards = UNSPLIT) -> None:
    """Fills a model with what ``weights`` gave.

    Raises:
        CheckpointError: names or shapes differ: another schema, or other hyper-parameters.
    """
    _load(model, tensors, _aliases(model), shards)


def map_weights(model: nn.Module, path: Path) -> None:
    """Makes the weights of a file those of a model, without a copy.

    They stay in the file, which may be replaced but not written into: what is read comes into memory, and goes again when memory is
    short.  What is written, as in training, stays with this process.

    Raises:
        CheckpointError: the file is missing or damaged, or holds weights of another model.
    """
    aliases = _aliases(model)
    _load(model, load_tensors(path), aliases, UNSPLIT, assign=True)
    for alias, name in aliases.items():  # weights under several names are one again
        owner, _, own = alias.rpartition(".")
        setattr(model.get_submodule(owner), own, attrgetter(name)(model))


def _load(model: nn.Module, tensors: Mapping[str, Tensor], aliases: Mapping[str, str], shards: Shards, *, assign: bool = False) -> None:
    full = dict(tensors)
    full.update({alias: tensors[name] for alias, name in aliases.items() if name in tensors})
    held = model.state_dict(keep_vars=True)
    full = {name: shards.own(held[name], value) if name in held else value for name, value in full.items()}
    try:
        model.load_state_dict(full, assign=assign)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        expected = "weights of the same schema and hyper-parameters"
        raise CheckpointError(f"weights that do not fit this model ({reason})", expected, "build the model as it was trained") from error


def save_tensors(tensors: Mapping[str, Tensor | ByRows], path: Path) -> None:
    """Writes safetensors, whole or not at all; of tensors whose rows lie on several ranks one block at a time is in memory.

    The same bytes as those of ``safetensors.torch.save_file``, which takes whole tensors alone.

    Raises:
        StorageError: the disk is full or the folder cannot be written.
    """
    order = sorted(tensors, key=lambda name: (list(NAMES).index(tensors[name].dtype), name))
    header, end = dict[str, Any](), 0
    for name in order:
        shape, dtype = tensors[name].shape, tensors[name].dtype
        first, end = end, end + shape.numel() * dtype.itemsize
        header[name] = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [first, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    with whole_file(path) as temporary, open(temporary, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for block in (block for name in order for block in _blocks(tensors[name])):
            file.write(block.contiguous().flatten().view(torch.uint8).numpy().data)


def load_tensors(path: Path) -> dict[str, Tensor]:
    """Reads safetensors: each tensor is a piece of the file, mapped, which comes into memory when it is read or changed.

    Raises:
        CheckpointError: the file is missing, truncated or not safetensors.
    """
    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        expected = "a whole safetensors file"
        raise CheckpointError(f"{path} cannot be read ({error})", expected, "train again, or take another copy") from error


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint found on disk.

    Attributes:
        folder: where it lies.
        state: what was given to ``save`` as ``state``.
    """

    folder: Path
    state: dict[str, Any]

    @classmethod
    def latest(cls, folder: Path) -> Checkpoint | None:
        """The newest whole checkpoint of a run's folder, or None.

        Raises:
            CheckpointError: it is damaged, or written by another version of the format.
        """
        found = _found(folder)
        if not found:
            return None
        try:
            raw = read_json(found[-1] / "state.json")
        except SourceError as error:
            raise CheckpointError(error.came, error.expected, f"remove {found[-1]} and train again") from error
        if raw.get("format") != FORMAT:
            came = f"{found[-1]} has format {raw.get('format')!r}"
            raise CheckpointError(came, f"format {FORMAT}", "train again, or use the version that wrote it")
        return cls(found[-1], raw)

    def restore(self, model: nn.Module, shards: Shards = UNSPLIT) -> None:
        """Puts the weights into the model."""
        load_weights(model, load_tensors(self.folder / "model.safetensors"), shards)

    def best(self) -> dict[str, Tensor] | None:
        """The best weights so far."""
        path = self.folder / "best.safetensors"
        return load_tensors(path) if path.exists() else None

    def restore_optimisers(self, optimisers: Optimisers, shards: Shards = UNSPLIT) -> None:
        """Puts the states into the optimisers and the random generators.

        Raises:
            CheckpointError: the optimisers are not the ones of the checkpoint.
        """
        tensors = load_tensors(self.folder / "optimiser.safetensors")
        _restore_random(tensors)
        states: list[dict[int, dict[str, Any]]] = [{} for _ in optimisers]
        for name, value in (tensors | self.state["numbers"]).items():
            place, weight, key = name.split(".", 2)
            if place == "random":
                continue
            if int(place) >= len(states):
                raise CheckpointError(f"a state of optimiser {place}", f"{len(states)} optimisers", "resume with the settings of the run")
            p = _held(optimisers[int(place)])[int(weight)]
            states[int(place)].setdefault(int(weight), {})[key] = shards.own(p, value) if isinstance(value, Tensor) else value
        for optimiser, state in zip(optimisers, states, strict=True):
            optimiser.load_state_dict({"state": state, "param_groups": optimiser.state_dict()["param_groups"]})


def save(
    folder: Path, state: Mapping[str, Any], model: nn.Module, optimisers: Optimisers, best: Path | None, shards: Shards = UNSPLIT
) -> None:
    """Writes a checkpoint into a run's folder, then removes the older ones.

    Args:
        folder: the run's folder.
        state: plain values; the place in the training.
        model: its weights now.
        optimisers: of the stage that runs.
        best: file with the best weights so far; kept as a hard link where the file system has them.
        shards: the tables that are split, open with the optimisers.

    Raises:
        StorageError: the disk is full or the folder cannot be written; the checkpoint before is still there.
    """
    older = _found(folder)
    number = int(older[-1].name.removeprefix(PREFIX)) + 1 if older else 1
    tensors: dict[str, Tensor | ByRows] = {**_random()}
    numbers = dict[str, Any]()
    for place, optimiser in enumerate(optimisers):
        for weight, values in optimiser.state_dict()["state"].items():
            for key, value in values.items():
                name = f"{place}.{weight}.{key}"
                if isinstance(value, Tensor):
                    tensors[name] = shards.whole(value)
                else:
                    numbers[name] = value
    with whole_folder(folder / f"{PREFIX}{number:06d}") as temporary:
        save_weights(model, temporary / "model.safetensors", shards)
        save_tensors(tensors, temporary / "optimiser.safetensors")
        if best is not None:
            _link(best, temporary / "best.safetensors")
        write_json(temporary / "state.json", {**state, "numbers": numbers, "format": FORMAT})
    for old in older:
        shutil.rmtree(old, ignore_errors=True)


def remove(folder: Path) -> None:
    """Removes all checkpoints of a run's folder, and what killed processes left half-written."""
    for path in _found(folder):
        shutil.rmtree(path, ignore_errors=True)
    sweep(folder, f"{PREFIX}*")


def _found(folder: Path) -> list[Path]:
    return sorted(p for p in folder.glob(f"{PREFIX}*") if p.is_dir())


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _blocks(tensor: Tensor | ByRows) -> Iterator[Tensor]:
    """All of it, in order, on the CPU."""
    return iter([tensor.detach().cpu()]) if isinstance(tensor, Tensor) else tensor.blocks()


def _held(optimiser: torch.optim.Optimizer) -> list[Tensor]:
    """An optimiser's weights in the order of its state."""
    return [p for group in optimiser.param_groups for p in group["params"]]


def _aliases(model: nn.Module) -> dict[str, str]:
    """Name -> the first name of the same memory."""
    first: dict[tuple[Any, ...], str] = {}
    aliases: dict[str, str] = {}
    for name, tensor in model.state_dict().items():
        if tensor.numel() == 0 or tensor.layout != torch.strided:
            continue
        key = (tensor.device, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if first.setdefault(key, name) != name:
            aliases[name] = first[key]
    return aliases


def _random() -> dict[str, Tensor]:
    states = {"random.cpu.0": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states.update({f"random.cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())})
    return states


def _restore_random(tensors: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(tensors["random.cpu.0"])
    for name, state in tensors.items():
        index = int(name.rpartition(".")[2]) if name.startswith("random.cuda.") else torch.cuda.device_count()
        if index < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, index)
