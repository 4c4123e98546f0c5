"""Two towers: the network of any of the papers on the user's side and on the item's, and a dot product between them.

Huang, He, Gao, Deng, Acero, Heck: Learning Deep Structured Semantic Models for Web Search using Clickthrough Data,
CIKM 2013 (two towers); Jiang et al., CIKM 2022, compare ADI with DNN, Shared-Bottom, Cross-Stitch, MMoE, PLE and STAR in
this form.

    u = f(user's fields and histories),   v = f'(item's fields),   score = u . v        (f and f': one kind of network)

Both sides know the domain: by its embedding among the fields (see ``Towers``), and by what the network has of each domain's
own.  So an item has a vector for each domain.

Deviations: with ``residual`` each side's output is the sum of its fields, and the network's output is added through a gate
that starts at 0 (the papers: False, the network's output alone); histories are read.
Trained on one domain, ``dnn`` is the papers' single-domain DNN.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from torch import Tensor

from isthmus.batch import Batch, Needs
from isthmus.layers.networks import make_network
from isthmus.layers.towers import NEEDS, Residual, Towers
from isthmus.model import Retriever
from isthmus.schema import Schema


class TwoTower(Retriever):
    """Two towers of one kind of network.

    Args:
        schema: of an encoded data set.
        network: of both sides: ``dnn``, ``shared_bottom``, ``cross_stitch``, ``mlp_plus_plus``, ``conet``, ``mmoe``,
            ``ple`` or ``star``; a file of ``isthmus.layers.networks``.
        network_args: the network's own hyper-parameters, such as ``{"experts": 8}``; those left out, its defaults.
        dim: width of a field's vector and of both towers' output.
        residual: add the network's output to the sum of the fields, through a gate; False: the network's output alone.
        user_id, history, tied, id_dropout, history_dropout, temperature, bias: see ``isthmus.layers.towers.Towers``.

    Raises:
        ConfigError: no such network, a hyper-parameter that it does not have, or a number out of range.
    """

    needs: ClassVar[Needs] = NEEDS
    paper: ClassVar[str] = "Huang et al., Deep Structured Semantic Models, CIKM 2013; networks of six papers"
    tasks: ClassVar[tuple[str, ...]] = ("retrieval", "next_item")

    def __init__(
        self,
        schema: Schema,
        *,
        network: str = "dnn",
        network_args: Mapping[str, Any] | None = None,
        dim: int = 64,
        residual: bool = True,
        user_id: bool = True,
        history: bool = True,
        tied: bool = True,
        id_dropout: float = 0.5,
        history_dropout: float = 0.0,
        temperature: float | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__(schema)
        domains = len(schema.domains)

        def tower(fields: int, dim: int) -> Residual:
            return Residual(make_network(network, domains, fields * dim, dim, network_args), residual)

        self.towers = Towers(
            schema,
            tower,
            dim=dim,
            user_id=user_id,
            history=history,
            tied=tied,
            id_dropout=id_dropout,
            history_dropout=history_dropout,
            temperature=temperature,
            bias=bias,
        )
        self.needs = self.towers.needs  # type: ignore[misc]  # without histories: less than the class declares

    def user_vector(self, batch: Batch) -> Tensor:
        """(B, dim)."""
        return self.towers.user(batch)

    def item_vector(self, item: Tensor, domain: Tensor) -> Tensor:
        """Item codes (...) and domain indices of the same shape, in any order -> (..., dim)."""
        return self.towers.item(item, domain)
