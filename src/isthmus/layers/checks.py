"""Numbers refused before anything is computed with them."""

from __future__ import annotations

from isthmus.errors import ConfigError


def require_share(name: str, value: float) -> None:
    """Refuses what is no share that may be dropped.

    Args:
        name: of the setting.
        value: dropped in training; 1 would leave nothing to learn from.

    Raises:
        ConfigError: below 0, 1 or more, or not a number.
    """
    if not 0 <= value < 1:
        raise ConfigError(f"{name} = {value!r}", "a share from 0 up to, but not including, 1", "use 0 to drop nothing")
