"""Encoders of event sequences: one file each, found by its name; no file imports another.

An encoder knows neither ids nor domains.  It takes vectors of events, the first one in slot 0, and gives a state after each; a state
depends on the slots up to its own alone, so what stands after a sequence's last event changes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.registry import Registry, settings_of
from isthmus.values import require_arguments

if TYPE_CHECKING:
    from isthmus.layers.encoders._base import Encoder

_REGISTRY = Registry(__name__, __file__, "encoder", "the name of a file in isthmus/layers/encoders")


def available() -> dict[str, Path]:
    """Names of all encoders and the files they lie in, in alphabetical order."""
    return _REGISTRY.available()


def get_encoder(name: str) -> type[Encoder]:
    """The encoder class of a file.

    Raises:
        ConfigError: no such encoder (tells the nearest name), or a file that does not hold exactly one.
    """
    from isthmus.layers.encoders._base import Encoder

    return _REGISTRY.one_class(Encoder, name)


def settings(name: str) -> dict[str, Any]:
    """An encoder's own hyper-parameters and their defaults.

    Raises:
        ConfigError: no such encoder.
    """
    return settings_of(get_encoder(name), "dim")


def make_encoder(name: str, dim: int, args: Mapping[str, Any] | None = None) -> Encoder:
    """A new encoder, with random weights.

    Args:
        name: of a file in this folder.
        dim: width of an event and of a state.
        args: hyper-parameters of the encoder's own; those left out have their defaults.

    Raises:
        ConfigError: no such encoder, or a hyper-parameter that it does not have (tells the nearest one) or of another type.
    """
    encoder, args = get_encoder(name), args or {}
    require_arguments(encoder, args, f"encoder {name!r}", "dim", word="hyper-parameter")
    return encoder(dim, **args)
