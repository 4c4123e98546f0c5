"""The networks of the papers, from rows to outputs: one file per network, found by its name; no file imports another.

A network knows neither ids nor schemas.  It takes rows ordered by domain and their bounds, and every row meets its own
domain's layers.  The ranking models run one on what they read of user and candidate together; a two-tower retriever
runs one on the user's side and one on the item's.  Listing the names imports nothing: the folder is the registry.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from isthmus.registry import Registry, settings_of
from isthmus.values import require_arguments

if TYPE_CHECKING:
    from isthmus.layers.networks._base import Network

_REGISTRY = Registry(__name__, __file__, "network", "the name of a file in isthmus/layers/networks")


def available() -> dict[str, Path]:
    """Names of all networks and the files they lie in, in alphabetical order."""
    return _REGISTRY.available()


def get_network(name: str) -> type[Network]:
    """The network class of a file.

    Raises:
        ConfigError: no such network (tells the nearest name), or a file that does not hold exactly one.
    """
    from isthmus.layers.networks._base import Network

    return _REGISTRY.one_class(Network, name)


def settings(name: str) -> dict[str, Any]:
    """A network's own hyper-parameters and their defaults.

    Raises:
        ConfigError: no such network.
    """
    return settings_of(get_network(name), "domains", "width", "out")


def make_network(name: str, domains: int, width: int, out: int, args: Mapping[str, Any] | None = None) -> Network:
    """A new network, with random weights.

    Args:
        name: of a file in this folder.
        domains: number of domains.
        width: of the input.
        out: width of the output.
        args: hyper-parameters of the network's own; those left out have their defaults.

    Raises:
        ConfigError: no such network, or a hyper-parameter that it does not have (tells the nearest one) or of another type.
    """
    network, args = get_network(name), args or {}
    require_arguments(network, args, f"network {name!r}", "domains", "width", "out", word="hyper-parameter")
    return network(domains, width, out=out, **args)
