"""``Variants``: the bundles that a service answers from, each with its share of the users, exchanged while it runs."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path

from isthmus.errors import ConfigError, IsthmusError, nearest
from isthmus.serve.batching import Batcher
from isthmus.serve.bundle import MANIFEST, Bundle
from isthmus.serve.engine import Engine

BUCKETS = 10_000
log = logging.getLogger("isthmus.serve")


@dataclass
class Variant:
    """One bundle's place.

    Attributes:
        path: its folder, which may be replaced.
        share: of the users, from 0 to 1.
        batcher: answers from what is loaded.
        stamp: what the folder looked like when it was last read, well or not.
        refused: why the folder as it is now is not served, or None.
    """

    path: Path
    share: float
    batcher: Batcher
    stamp: tuple[int, ...]
    refused: str | None = field(default=None)

    @property
    def engine(self) -> Engine:
        """What answers now."""
        return self.batcher.engine


class Variants:
    """Bundles with shares.

    Args:
        paths: their folders.
        shares: of the users, any positive numbers; None: alike.
        make: bundle -> batcher.
        executor: where bundles are read.
        threads: of one call of a graph.

    Raises:
        ConfigError: no bundles, or shares that are not theirs.
        SourceError: a folder that is no bundle.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        shares: Sequence[float] | None,
        make: Callable[[Bundle], Batcher],
        executor: Executor,
        threads: int = 1,
    ) -> None:
        shares = [1.0] * len(paths) if shares is None else list(shares)
        if not paths or len(shares) != len(paths) or min(shares) <= 0:
            came = f"{len(paths)} bundles with shares {shares}"
            raise ConfigError(came, "a bundle or more, and as many positive shares", "give a share for each, or none")
        self._make, self._executor, self._threads = make, executor, threads
        self.all = [
            Variant(path, share / sum(shares), stamp=_stamp(path), batcher=make(Bundle.load(path, threads=threads)))  # looked at, then read
            for path, share in zip(paths, shares, strict=True)
        ]

    def of(self, user: str | None, name: str | None = None) -> Variant:
        """The variant of a user, always the same one; of nobody the first.

        Args:
            user: her id, or None.
            name: a bundle's name, to ask that one.

        Raises:
            ConfigError: no bundle of this name.
        """
        if name is not None:
            for variant in self.all:
                if name in (variant.engine.bundle.name, variant.engine.bundle.manifest["name"]):
                    return variant
            known = [variant.engine.bundle.manifest["name"] for variant in self.all]
            raise ConfigError(f"bundle {name!r}", f"one of {known}", nearest(name, known))
        if user is None or len(self.all) == 1:
            return self.all[0]
        digest = hashlib.blake2b(user.encode(), digest_size=8, person=b"isthmus-ab").digest()
        place, passed = int.from_bytes(digest, "big") % BUCKETS / BUCKETS, 0.0
        for variant in self.all[:-1]:
            passed += variant.share
            if place < passed:
                return variant
        return self.all[-1]

    async def reload(self, *, force: bool = False) -> list[tuple[Variant, bool]]:
        """Reads the folders that have changed; whoever is being answered is answered by the old bundle.

        Args:
            force: read all of them.

        Returns:
            Those read, and whether they are served now; a folder that is refused leaves the old bundle serving.
        """
        done = []
        for variant in self.all:
            stamp = _stamp(variant.path)
            if stamp == variant.stamp and not force:
                continue
            variant.stamp = stamp
            try:
                bundle = await asyncio.get_running_loop().run_in_executor(
                    self._executor, lambda path=variant.path: Bundle.load(path, threads=self._threads)
                )
            except (IsthmusError, OSError) as error:
                variant.refused = str(error)
                log.error("%s is refused, %s serves on: %s", variant.path, variant.engine.bundle.name, error)
                done.append((variant, False))
                continue
            variant.refused, variant.batcher = None, self._make(bundle)
            log.info("%s serves %s", variant.path, bundle.name)
            done.append((variant, True))
        return done


def _stamp(path: Path) -> tuple[int, ...]:
    """Changes when the folder's manifest does."""
    try:
        facts = os.stat(path / MANIFEST)
    except OSError:
        return ()
    return facts.st_ino, facts.st_mtime_ns, facts.st_size
