"""``LocalGlobal``: what MAN has of every item twice, in its domain's own space and in the one of all domains."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from isthmus.layers.domain_items import DomainItems
from isthmus.layers.encoders import make_encoder, settings
from isthmus.layers.encoders._base import Encoder, Places
from isthmus.layers.features import EntityFields
from isthmus.layers.sequence import Left
from isthmus.layers.table import DomainTable
from isthmus.schema import Schema


class LocalGlobal(nn.Module):
    """Events and candidates in both spaces, and the global states.

    ::

        local  = [the item's vector in the row's domain || the event's domain]
        global = [sum of the item's id and fields || the domain]

    Args:
        schema: of an encoded data set.
        dim: width of an item's vector.
        domain_dim: width of the domain's beside it.
        encoder: name of a file in ``isthmus.layers.encoders``.
        args: its hyper-parameters.
        length: places that are told apart.
        std: standard deviation of the items' vectors at the start.
        id_dropout: share of items, among events and candidates, that are "unknown" in both spaces in training.

    Attributes:
        timed: the encoder wants to know when events were.

    Raises:
        ConfigError: no such encoder or hyper-parameter.
    """

    def __init__(
        self,
        schema: Schema,
        dim: int,
        domain_dim: int,
        encoder: str,
        args: Mapping[str, Any] | None,
        length: int,
        *,
        std: float,
        id_dropout: float,
    ) -> None:
        super().__init__()
        own = {"length": 0} if "length" in settings(encoder) else {}  # places are added to the events here, eq. 1
        self._encoder, self._args, self._width = encoder, {**own, **(args or {})}, dim + domain_dim
        self.here = DomainItems(schema, dim, std=std)
        self.everywhere = EntityFields(schema.item, dim, id_dropout=id_dropout, std=std)
        self.domain = DomainTable(len(schema.domains), domain_dim, std=0.02)
        self.begin = nn.Parameter(torch.randn(self._width) * 0.02)
        self.places, self.encoder = Places(length, self._width), self.make()
        self.timed, self.unit = self.encoder.timed, schema.time_unit

    def make(self) -> Encoder:
        """One more encoder of the same kind."""
        return make_encoder(self._encoder, self._width, self._args)

    def items(self, item: Tensor, domain: Tensor, own: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Codes and domains (...) -> local and global vectors (..., dim + domain_dim).

        Args:
            item, domain: codes, and where they are.
            own: (...) the domains whose local vectors they have, where these are not their own.
        """
        beside, known = self.domain(domain + 1), self.everywhere.known_codes(item)
        here = self.here(known, domain if own is None else own)
        return torch.cat([here, beside], -1), torch.cat([self.everywhere.total(item, known), beside], -1)

    def forward(self, left: Left) -> tuple[Tensor, Tensor, Tensor]:
        """E_g (with places, eq. 2), S_g (eq. 4), and the events' local vectors without places; (B, T, dim + domain_dim) each.

        Of merged histories the events in other domains have vectors in the row's own domain too, so that its rows touch no other's.
        """
        here, everywhere = self.items(left.item, left.domain, left.domain[:, :1].expand_as(left.item))
        begin = torch.zeros_like(here[:1])
        begin[:, 0] = self.begin
        shared = self.places(everywhere + begin)
        return shared, self.encoder.states(shared, left.gaps(self.unit)), here + begin
