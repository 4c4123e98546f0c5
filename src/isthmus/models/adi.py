"""ADI: a two-tower retriever whose towers adapt to their domain.

Jiang, Li, et al.: Adaptive Domain Interest Network for Multi-domain Recommendation, CIKM 2022.  Each tower is

    F^     = adaptation layer of the fields, the domain's own                            (eq. 21-26)
    shared = sum_k alpha_k MLP_k(F^),   alpha = softmax_k(W_k f_domain + b_k)            (eq. 8, 9)
    spec   = MLP_d(F^)                                                                   (eq. 10)
    fused  = fusion of both, by gates computed from f_domain                             (eq. 11-17)
    E      = FC_d(fused)                                                                 (eq. 18)

with domain-specific batch norm after every hidden layer (eq. 20), and score = E_user . E_item.  Self-training
(Algorithm 1, eq. 27) lets the model find rows of one domain that look like positives of another.

Departures from the paper, each a setting: eq. 8 divides affine outputs by their sum, which can be 0 or negative; here it
is a softmax.  ``residual`` adds the sum of the adapted fields to E (the paper: False).  The user tower reads histories.
The SE-block's last bias starts at 1, so that at first every field passes unchanged.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from isthmus.batch import Batch, Needs
from isthmus.errors import ConfigError, nearest
from isthmus.insight import Insight
from isthmus.layers.adi import Tower
from isthmus.layers.catalogues import Catalogues
from isthmus.layers.losses import pool_softmax
from isthmus.layers.towers import NEEDS, Towers
from isthmus.model import Loss, Model, Retriever, Stage, evaluating
from isthmus.schema import Schema

if TYPE_CHECKING:
    from isthmus.data.dataset import Dataset

NORMS = ("domain", "batch", "none")
FUSIONS = ("concat", "sum", "network_mul")
ADAPTATIONS = ("none", "linear", "attention", "se")
PLACEMENTS = ("one", "per_domain", "per_network")
SAMPLE = 2048  # training rows of a domain that the adaptation weights are averaged over


class ADI(Retriever):
    """Adaptive domain interest network.

    Args:
        schema: of an encoded data set.
        dim: width of a field's vector and of both towers' output.
        hidden: widths of the hidden layers of each shared and domain-specific network.
        shared: K, the number of shared networks (more than 1: the paper's MAX).
        fusion: ``concat`` (eq. 13), ``sum`` (eq. 14, 15) or ``network_mul`` (eq. 16, 17: STAR's product of weights).
        norm: after hidden layers: ``domain`` (eq. 20), ``batch`` (all rows together, eq. 19) or ``none``.
        adaptation: ``none``, ``linear`` (eq. 21, 22), ``attention`` (eq. 23, 24) or ``se`` (eq. 25, 26).
        placement: of the adaptation layer (Figure 4): ``one`` for all domains (1-SE), one ``per_domain`` (3-SE), or one
            ``per_network`` (4-SE).
        self_training: learn from pseudo-labels (Algorithm 1); needs shared candidates (the default sampler has them).
        portion: p, the share of a domain's rows that become pseudo-labels of another one in the first epoch.
        growth: delta p, added in every later epoch.
        residual: add the sum of the adapted fields to each tower's output (with ``per_network``: of the fields themselves).
        dropout: share of hidden activations dropped in training.
        user_id, history, tied, id_dropout, history_dropout, temperature, bias: see ``isthmus.layers.towers.Towers``.

    Raises:
        ConfigError: no such fusion, norm, adaptation or placement, or a number out of range (those of the towers included).
    """

    needs: ClassVar[Needs] = NEEDS
    paper: ClassVar[str] = "Jiang et al., Adaptive Domain Interest Network for Multi-domain Recommendation, CIKM 2022"
    tasks: ClassVar[tuple[str, ...]] = ("retrieval", "next_item")

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 64,
        hidden: Sequence[int] = (64,),
        shared: int = 1,
        fusion: str = "concat",
        norm: str = "domain",
        adaptation: str = "se",
        placement: str = "per_domain",
        self_training: bool = False,
        portion: float = 0.01,
        growth: float = 0.01,
        residual: bool = True,
        dropout: float = 0.0,
        user_id: bool = True,
        history: bool = True,
        tied: bool = True,
        id_dropout: float = 0.5,
        history_dropout: float = 0.0,
        temperature: float | None = None,
        bias: bool = False,
    ) -> None:
        super().__init__(schema)
        for name, value, known in (
            ("fusion", fusion, FUSIONS),
            ("norm", norm, NORMS),
            ("adaptation", adaptation, ADAPTATIONS),
            ("placement", placement, PLACEMENTS),
        ):
            if value not in known:
                raise ConfigError(f"{name} = {value!r}", f"one of {known}", nearest(str(value), known))
        if shared < 1 or not hidden or not 0 <= portion <= 1 or growth < 0:
            came = f"shared = {shared}, hidden = {list(hidden)}, portion = {portion}, growth = {growth}"
            raise ConfigError(came, "shared >= 1, a hidden layer, 0 <= portion <= 1, growth >= 0", "correct the one out of range")
        if fusion == "network_mul" and shared != 1:
            raise ConfigError(f"fusion 'network_mul' with {shared} shared networks", "one (eq. 16)", "set shared=1, or another fusion")
        if fusion == "network_mul" and placement == "per_network" and adaptation != "none":
            raise ConfigError("adaptation per network in 'network_mul'", "one network per domain (eq. 16)", "set placement='per_domain'")
        domains = len(schema.domains)

        def tower(fields: int, width: int) -> nn.Module:
            return Tower(
                domains,
                fields,
                width,
                hidden=hidden,
                shared=shared,
                fusion=fusion,
                norm=norm,
                adaptation=adaptation,
                placement=placement,
                residual=residual,
                dropout=dropout,
            )

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
        self.self_training, self.portion, self.growth = self_training, portion, growth
        self.shows = Catalogues(schema)

    def user_vector(self, batch: Batch) -> Tensor:
        """(B, dim)."""
        return self.towers.user(batch)

    def item_vector(self, item: Tensor, domain: Tensor) -> Tensor:
        """(...) -> (..., dim)."""
        return self.towers.item(item, domain)

    def stages(self) -> list[Stage]:
        """One, with pseudo-labels when asked for."""
        return [Stage("fit", loss=_self_training_loss if self.self_training else None)]

    def pseudo_rows(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Algorithm 1, lines 8-10: rows that look most like positives of another domain, scored by the frozen model.

        Of the rows of domain i the p per cent with the highest scores in domain j are chosen, among those whose item j
        can show; p grows with the epoch.

        Returns:
            (b,) positions in the batch and (b,) the other domain, ascending; no gradient reaches either.
        """
        share = min(self.portion + self.growth * batch.epoch, 1.0)
        chosen, target = [], []
        with torch.no_grad(), evaluating(self):
            for j in range(len(self.schema.domains)):
                open_ = self.shows(batch.item[:, 0], j) & (batch.domain != j)
                rows = open_.nonzero()[:, 0]
                if not len(rows):
                    continue
                score = self(batch.take(rows, torch.full_like(rows, j))).logit[:, 0]
                source = batch.domain[rows]
                for i in source.unique().tolist():
                    own = (source == i).nonzero()[:, 0]
                    most = int(share * (batch.offsets[i + 1] - batch.offsets[i]))
                    best = rows[own[score[own].topk(min(most, len(own))).indices]]
                    chosen.append(best)
                    target.append(torch.full_like(best, j))
        none = batch.user.new_zeros(0)
        return torch.cat([none, *chosen]), torch.cat([none, *target])

    def insights(self, dataset: Dataset) -> list[Insight]:
        """Figure 5: the adaptation layer's mean weight of every field in every domain, for both towers."""
        with torch.no_grad(), evaluating(self):
            return self._adaptation(dataset)

    def _adaptation(self, dataset: Dataset) -> list[Insight]:
        from isthmus.data.batches import Plan, batches

        rows: dict[str, list[dict[str, float | str]]] = {"user": [], "item": []}
        for d, name in enumerate(self.schema.domain_names):
            plan = Plan(batch_size=SAMPLE, domains=(d,), cross=True)
            for batch in batches(dataset, "train", self.needs, plan, positives_only=True, prefetch=0):
                batch = batch.to(self.shows.keys.device)
                sides = (
                    ("user", self.towers.user_tower, self.towers.user_fields(batch), self.towers.user_names),
                    ("item", self.towers.item_tower, self.towers.item_fields(batch.item[:, 0], batch.domain), self.towers.item_names),
                )
                for side, tower, fields, names in sides:
                    weight = tower.adaptation_weights(fields, batch.offsets)  # type: ignore[operator]
                    if weight is not None:
                        found = zip(names, weight.mean(0).tolist(), strict=True)
                        rows[side] += [{"field": field, "domain": name, "weight": value} for field, value in found]
                break
        return [
            Insight(f"adaptation_{side}", f"Adaptation weights, {side} tower", "heatmap", table, x="field", y="domain", value="weight")
            for side, table in rows.items()
            if table
        ]


def _self_training_loss(model: Model, batch: Batch, task: Loss) -> dict[str, Tensor]:
    """Eq. 27: the rows themselves, and their pseudo-labelled copies in other domains.

    Pseudo rows pass with frozen statistics, so that a domain's batch norm sees its own rows only; and so do the candidates
    they are compared with.  Were those taken from the pass above, the model could win by telling the two passes apart
    (measured: the term fell to 0 within an epoch, and the metrics with it).
    """
    assert isinstance(model, ADI)
    pool = batch.pool
    if pool is None:
        raise ConfigError("self-training with each row's own negatives", "candidates shared by a domain's rows", 'sampler="auto"')
    terms = task(model, batch)
    rows, domain = model.pseudo_rows(batch)
    ranked = torch.tensor(pool.offsets, device=rows.device).diff() > 1  # no row in this batch, or one alone: nothing to compare with
    rows, domain = rows[ranked[domain]], domain[ranked[domain]]
    if not len(rows):
        return {**terms, "pseudo": torch.zeros_like(terms["loss"])}
    other = batch.take(rows, domain)
    with evaluating(model):
        user, positive = model.user_vector(other), model.item_vector(other.item[:, 0], domain)
        vectors = model.item_vector(pool.item, pool.domain)
    pseudo = pool_softmax(user, other.item[:, 0], other.offsets, vectors, pool, positive, other.weight)
    share = len(rows) / len(batch) if batch.weight is None else batch.weight[rows].sum() / batch.weight.sum().clamp_min(1e-12)
    return {**terms, "pseudo": pseudo * share}
