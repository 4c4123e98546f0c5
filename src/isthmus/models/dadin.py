"""DADIN: domain adversarial deep interest network.

Kong, Hou, Zhao, Liu, Su, Chen: DADIN: Domain Adversarial Deep Interest Network for Cross Domain Recommender Systems.

    q, p, a, b                              candidate, profile, events here and elsewhere, weighted by q           (eq. 1-3)
    m      = [q, v_p p, v_a a, v_b b]       interests weighted by all that is known                                (eq. 4-6)
    z      = 1/2 ((sum of m_i c_i)^2 - sum of (m_i c_i)^2)                                                         (eq. 7, 8)
    h_spec = DNN(z),  h_DA = DA(h_spec),  h = h_spec + h_DA
    y^     = sigmoid(W_2 Dropout(W_1 h + b_1) + b_2), for all domains one                                          (eq. 9, 10)
    d^     = softmax(W_3 Rev(h_DA) + b_3), D_1 of y^ h_DA where y^ >= T, D_0 of (1 - y^) h_DA elsewhere            (eq. 11-14)
    L      = L_y + lambda_2 L_d + lambda_3 (alpha L_0 + (1 - alpha) L_1)                                           (eq. 15-21)

Rev hands the gradient on with its sign changed: classifiers learn to tell domains apart, h_DA not to let them.

As the paper's equations ask where its print disagrees with itself: v_a weighs a (eq. 5 prints v_s twice), losses are negative
log-likelihoods (eq. 15-18), alpha stands with L_0 alone (eq. 22, against 21).  The label predictor learns from L_y alone (eq. 24), so y^
is a constant in D_0 and D_1.

Deviations: roles go by the row, events here and elsewhere, not target's and source's, so that there may be any number of domains;
T is the click rate of the row's domain in training where none is given, since rates of a few per cent never reach one half; the
logit starts from biases of items and users (``start``), and each field's value has a weight of its own (``first_order``): eq. 7 and 8
multiply fields by pairs, so that what an item or a user is like by itself has no term; a batch with rows of one domain says nothing of
domains; the strength of the reversal may rise over epochs; classifiers may learn faster than what flees from them; and
they read h_DA normalised, ``bounded``: a loss to be made large has no end, and as printed h_DA grows until nothing else is learnt
(log).  Two sides that learn with momentum run in circles: ``How.momentum`` 0 aligns better (``isthmus.examples.moons``).

The paper's ablations 1 to 9 are ``item_attention``, ``interest_attention``, ``bi_interaction`` False; ``hidden`` empty; both of the
last; ``domain_agnostic`` False; ``global_weight`` 0; ``class_weight`` 0; both 0.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isthmus.batch import Batch, Needs, Output
from isthmus.data.samples import samples
from isthmus.errors import ConfigError, nearest
from isthmus.insight import Insight
from isthmus.layers.adversarial import DomainClassifier, reverse, warm_up
from isthmus.layers.alignment import a_distance, picture
from isthmus.layers.biases import Levels
from isthmus.layers.dropout import Dropout
from isthmus.layers.fields import Fields
from isthmus.layers.interactions import bi_interaction
from isthmus.layers.interests import NAMES, SAMPLE, InterestAttention, InterestLooks, Interests
from isthmus.layers.mlp import MLP, start_at_zero
from isthmus.layers.start import FromBiases
from isthmus.layers.table import DomainTable
from isthmus.model import Model, evaluating
from isthmus.schema import Schema

if TYPE_CHECKING:
    from isthmus.data.dataset import Dataset

FIELDS = 1 + len(NAMES)
SHOWN = 300  # rows of a domain in a picture
DISTANCE = "2 (1 - 2 error) of a linear classifier that tells two domains apart by these features: 0 they are alike, 2 they lie apart."


class DADIN(Model):
    """Interests, their pairs, and features that do not tell domains apart.

    Args:
        schema: of an encoded data set.
        dim: d, width of all vectors.
        item_attention: weigh events by the candidate; False: their mean (DADIN1).
        interest_attention: weigh interests; False: all as they are (DADIN2).
        bi_interaction: multiply fields by pairs; False: side by side (DADIN3).
        hidden: widths of the crossing network's hidden layers; empty: no network (DADIN4).
        domain_agnostic: h_DA is a layer's, beside h_spec; False: h_spec is all there is (DADIN6).
        predictor: width of the label predictor's layer.
        dropout: share dropped in the label predictor.
        global_weight: lambda_2; 0: no global domain confusion (DADIN7).
        class_weight: lambda_3; 0: none by class (DADIN8).
        alpha: share of L_0 in the confusion by class.
        threshold: T; None: the click rate of the row's domain in training.
        strength: of the reversal; 1 as printed.
        warm_up: epochs over which it rises from 0; 0: at once, as printed.
        classifier_rate: how much faster than the rest classifiers learn; above 1 only with ``How.momentum`` 0 (log).
        bounded: classifiers read h_DA at one length; False: as it is, which it then makes as long as it can.
        start: of the logit: ``bias``: biases of items and users; ``level``: the domain's click rate alone, as printed.
        first_order: a weight for each field's value, beside pairs; False: for the domain alone, as printed.
        id_dropout: share of ids replaced by "unknown" in training.

    Raises:
        ConfigError: a number out of range.
    """

    needs: ClassVar[Needs] = Needs(history=True, cross_history=True, context=True)
    paper: ClassVar[str] = "Kong et al., Domain Adversarial Deep Interest Network"
    tasks: ClassVar[tuple[str, ...]] = ("ctr",)

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        item_attention: bool = True,
        interest_attention: bool = True,
        bi_interaction: bool = True,
        hidden: Sequence[int] = (64,),
        domain_agnostic: bool = True,
        predictor: int = 100,
        dropout: float = 0.0,
        global_weight: float = 1.0,
        class_weight: float = 1.0,
        alpha: float = 0.5,
        threshold: float | None = None,
        strength: float = 1.0,
        warm_up: int = 10,
        classifier_rate: float = 1.0,
        bounded: bool = True,
        start: str = "bias",
        first_order: bool = True,
        id_dropout: float = 0.05,
    ) -> None:
        super().__init__(schema)
        if start not in ("bias", "level"):
            raise ConfigError(f"start {start!r}", "'bias' or 'level'", nearest(start, ("bias", "level")))
        _check(global_weight=global_weight, class_weight=class_weight, strength=strength, warm_up=warm_up)
        if classifier_rate <= 0:
            raise ConfigError(f"classifier_rate = {classifier_rate}", "a number above 0", "1 as printed")
        for name, value in (("alpha", alpha), ("threshold", threshold)):
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"{name} = {value}", "a share from 0 to 1", "0.5 as printed")
        self.global_weight, self.class_weight, self.alpha = global_weight, class_weight, alpha
        self.threshold, self.strength, self.warm_up, self.bounded = threshold, strength, warm_up, bounded
        domains = len(schema.domains)
        self.levels = Levels(schema)
        self.start = FromBiases(schema) if start == "bias" else None
        self.interests = Interests(schema, dim, attention=item_attention, id_dropout=id_dropout)
        self.attention = InterestAttention(len(NAMES), dim) if interest_attention else None
        self.field_weight = nn.Parameter(torch.ones(FIELDS)) if bi_interaction else None  # C_m
        width = dim if bi_interaction else FIELDS * dim
        self.crossing = MLP(width, hidden, out=dim) if hidden else None
        width = dim if hidden else width
        self.agnostic = MLP(width, [width], out=width) if domain_agnostic else None
        self.predictor = nn.Sequential(nn.Linear(width, predictor), Dropout(dropout), nn.Linear(predictor, 1))  # eq. 9, 10
        start_at_zero(self.predictor[2])
        self.weights = Fields(schema, 1, id_dropout=id_dropout) if first_order else None
        self.offset = None if first_order else DomainTable(domains, 1, std=0.0)
        self.whole = DomainClassifier(domains, width, classifier_rate) if global_weight else None
        self.negatives = DomainClassifier(domains, width, classifier_rate) if class_weight else None  # D_0
        self.positives = DomainClassifier(domains, width, classifier_rate) if class_weight else None  # D_1

    def forward(self, batch: Batch) -> Output:
        """Logits (B, C); in training the terms ``domain`` (Loss2) and ``domain_by_class`` (Loss3)."""
        specific, agnostic = self.features(batch)
        above = self.predictor(specific if agnostic is None else specific + agnostic).view(batch.item.shape)
        start = self.levels.level[batch.domain, None] if self.start is None else self.start(batch)
        logit = start + self.first(batch) + above
        seen = sum(end > start for start, end in itertools.pairwise(batch.offsets))
        extra = self._confusion(specific if agnostic is None else agnostic, logit, batch) if self.training and seen > 1 else {}
        return Output(logit, extra)

    def insights(self, dataset: Dataset) -> list[Insight]:
        """Weights of interests by label (Figure 7), and of h_spec and h_DA a picture (Figure 6) and how far domains lie apart."""
        interests, label = InterestLooks(), dict[str, Tensor]()
        found: dict[str, dict[str, Tensor]] = defaultdict(dict)  # h_spec, h_DA -> domain -> (N, width)
        with torch.no_grad(), evaluating(self):
            for name, batch in samples(dataset, self.needs, SAMPLE, labels=True):
                batch = batch.to(self.levels.level.device)
                assert batch.label is not None
                m, label[name] = self.interests(batch).flatten(0, 1), batch.label.flatten()
                if self.attention is not None:
                    interests.add(name, self.attention.weights(m), label[name])
                found["h_spec"][name], agnostic = self.crossed(m)
                if agnostic is not None:
                    found["h_DA"][name] = agnostic
        return interests.looks() + _distances(found) + [_picture(layer, by_domain, label) for layer, by_domain in found.items()]

    def first(self, batch: Batch) -> Tensor:
        """(B, C) or (B, 1): the sum of the fields' weights; without them the domain's."""
        if self.weights is not None:
            return self.weights(batch).sum((2, 3))
        assert self.offset is not None
        return self.offset(batch.domain + 1)

    def features(self, batch: Batch) -> tuple[Tensor, Tensor | None]:
        """h_spec and h_DA, (B * C, width); None without a layer of its own."""
        return self.crossed(self.interests(batch).flatten(0, 1))

    def crossed(self, m: Tensor) -> tuple[Tensor, Tensor | None]:
        """(B * C, 4, dim) candidate and interests -> h_spec and h_DA."""
        if self.attention is not None:
            m = self.attention(m)  # eq. 5
        z = m.flatten(1) if self.field_weight is None else bi_interaction(m * self.field_weight[:, None])  # eq. 7, 8
        specific = z if self.crossing is None else self.crossing(z)
        return specific, None if self.agnostic is None else self.agnostic(specific)

    def _confusion(self, h: Tensor, logit: Tensor, batch: Batch) -> dict[str, Tensor]:
        """Loss2 and Loss3, by name."""
        strength = self.strength * warm_up(batch.epoch, self.warm_up)
        if self.bounded:
            h = F.layer_norm(h, h.shape[1:])
        candidates = batch.item.shape[1]
        domain = batch.domain.repeat_interleave(candidates)
        weight = torch.ones_like(logit) if batch.weight is None else batch.weight[:, None].expand_as(logit)
        weight = weight.flatten()
        terms: dict[str, Tensor] = {}
        if self.whole is not None:
            terms["domain"] = self.global_weight * self.whole.loss(reverse(h, strength), domain, weight)  # eq. 12, 16
        if self.negatives is not None and self.positives is not None:
            y = logit.detach().sigmoid().flatten()  # eq. 24: the label predictor learns nothing from this
            positive = y >= (self.levels.level[domain].sigmoid() if self.threshold is None else self.threshold)
            zero = self.negatives.loss(reverse((1 - y)[:, None] * h, strength), domain, weight * ~positive)  # eq. 14, 18
            one = self.positives.loss(reverse(y[:, None] * h, strength), domain, weight * positive)  # eq. 13, 17
            terms["domain_by_class"] = self.class_weight * (self.alpha * zero + (1 - self.alpha) * one)  # eq. 22
        return terms


def _check(**numbers: float) -> None:
    for name, value in numbers.items():
        if not value >= 0:
            raise ConfigError(f"{name} = {value}", "0 or more", "0 leaves it out")


def _distances(found: dict[str, dict[str, Tensor]]) -> list[Insight]:
    """A bar for each pair of domains, before and after the domain-agnostic layer."""
    rows: list[dict[str, float | str]] = [
        {"domains": f"{one} / {other}", "features": layer, "distance": a_distance(by_domain[one], by_domain[other])}
        for layer, by_domain in found.items()
        for one, other in itertools.combinations(by_domain, 2)
    ]
    title = "How far domains lie apart (proxy A-distance)"
    return [Insight("a_distance", title, "bars", rows, "domains", "features", "distance", DISTANCE)] if rows else []


def _picture(layer: str, by_domain: dict[str, Tensor], label: dict[str, Tensor]) -> Insight:
    """The first two principal components of some rows, by domain and label."""
    some = {name: h[:SHOWN] for name, h in by_domain.items()}
    names = [f"{name}, {'clicked' if y else 'not clicked'}" for name in some for y in label[name][:SHOWN].tolist()]
    return picture(layer, torch.cat(list(some.values())), names)
