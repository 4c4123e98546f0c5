"""Made-up worlds in which the right answer is known: see ``isthmus.data.synthetic``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Literal

from isthmus.data.sources._files import Loaded
from isthmus.data.synthetic import World, bridge_world, demo_world, make_world, table2_world
from isthmus.errors import ConfigError, nearest

ORIGIN = "made up here from a seed: there is nothing to get"

KINDS: dict[str, Callable[..., World]] = {"demo": demo_world, "table2": table2_world, "bridge": bridge_world, "make": make_world}


def load(kind: Literal["demo", "table2", "bridge", "make"] = "demo", *, seed: int = 0, settings: Mapping[str, Any] | None = None) -> Loaded:
    """The events of a world; the same arguments give the same events.

    Args:
        kind: ``demo`` (three markets), ``table2`` (one source and three targets, in the form of DACDR's data), ``bridge``
            (two domains of ratings, tastes carried by a rotation), or ``make``: as the settings say.
        seed: of everything drawn.
        settings: what ``demo_world``, ``table2_world``, ``bridge_world`` or ``make_world`` takes beside the seed.

    Raises:
        ConfigError: an unknown kind or setting, or a number out of range.
    """
    if kind not in KINDS:
        raise ConfigError(f"kind={kind!r}", f"one of {', '.join(KINDS)}", nearest(str(kind), KINDS))
    known = [name for name in inspect.signature(KINDS[kind]).parameters if name != "seed"]
    for name in settings or {}:
        if name not in known:
            raise ConfigError(f"a {kind} world has no setting {name!r}", f"one of {', '.join(known) or 'none'}", nearest(name, known))
    return Loaded(KINDS[kind](seed=seed, **(settings or {})).events)
