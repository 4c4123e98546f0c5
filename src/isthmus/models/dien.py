"""DIEN: what a user is interested in, how that came about, and where it leads as far as the candidate is concerned.

Zhou, Mou, Fan, Pi, Bian, Zhou, Zhu, Gai: Deep Interest Evolution Network for Click-Through Rate Prediction, AAAI 2019.

    h_t  = GRU(e_1, ..., e_t)                                       interest extraction
    aux  = mean over t of -log s(h_t . e_t+1) - log(1 - s(h_t . e')), e' an event that did not come next
    loss = the task's + auxiliary * aux
    a_t  = softmax over t of h_t W q                                the candidate's attention
    h'_t = (1 - a_t u'_t) * h'_t-1 + a_t u'_t * n'_t                interest evolution: AUGRU over h
    logit = level_d + MLP([user, domain, context, q, h'_T])         with Dice between layers

The equations of the gates u' and the candidate states n' are in ``isthmus.layers.evolution``.

Deviations: e' is the item of another event of the batch, from histories in the same domain, at random; where it is the very item
that came next the pair is left out.  The auxiliary term is a mean over pairs of events, not a sum over a history's, so that its weight
does not depend on how long histories are.  User and domain stand beside the context, and the network has the widths of its family here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from isthmus.batch import Batch, Needs, Output
from isthmus.errors import ConfigError
from isthmus.layers.biases import Levels
from isthmus.layers.evolution import InterestEvolution, InterestExtraction, Steps, shuffled_within, steps_of, tells_next
from isthmus.layers.fields import Fields
from isthmus.layers.mlp import MLP
from isthmus.layers.target_attention import Dice
from isthmus.model import Model
from isthmus.schema import Schema


class DIEN(Model):
    """Two recurrences over the history in the row's own domain, the second one steered by the candidate.

    Args:
        schema: of an encoded data set.
        dim: width of a vector.
        auxiliary: weight of the term by which interests tell the event that comes next; 0: none.
        hidden: widths of the network's hidden layers.
        dropout: share of activations dropped in training.
        id_dropout: share of ids replaced by "unknown" in training.

    Raises:
        ConfigError: a negative ``auxiliary``.
    """

    needs: ClassVar[Needs] = Needs(history=True, context=True)
    paper: ClassVar[str] = "Zhou et al., Deep Interest Evolution Network, AAAI 2019"

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        auxiliary: float = 1.0,
        hidden: Sequence[int] = (128, 64),
        dropout: float = 0.0,
        id_dropout: float = 0.05,
    ) -> None:
        super().__init__(schema)
        if auxiliary < 0:
            raise ConfigError(f"auxiliary = {auxiliary}", "0 or more", "try 1")
        self.auxiliary = auxiliary
        self.levels = Levels(schema)
        self.fields = Fields(schema, dim, id_dropout=id_dropout, history=False)
        width = self.fields.items.fields * dim  # of an event, an interest and a candidate: all fields of the item
        self.extraction, self.evolution = InterestExtraction(width), InterestEvolution(width)
        self.mlp = MLP(self.fields.count * dim + width, hidden, dropout=dropout, activation=Dice, out=1)

    def forward(self, batch: Batch) -> Output:
        """Logits (B, C); in training, and unless its weight is 0, the term ``auxiliary``."""
        assert batch.history is not None
        steps = steps_of(batch.history)
        event = self.fields.item(steps.item).flatten(1)
        interest = self.extraction(event, steps)
        candidate = self.fields.item(batch.item).flatten(2)
        user = self.fields.row(batch).flatten(1)[:, None].expand(-1, candidate.shape[1], -1)
        x = torch.cat([user, candidate, self.evolution(interest, steps, candidate)], 2)
        logit = self.mlp(x.flatten(0, 1)).view(batch.item.shape) + self.levels.level[batch.domain, None]
        wanted = self.training and self.auxiliary > 0
        return Output(logit, {"auxiliary": self.auxiliary * self._tells_next(interest, event, steps, batch.domain)} if wanted else {})

    def _tells_next(self, interest: Tensor, event: Tensor, steps: Steps, domain: Tensor) -> Tensor:
        """Interests and events (E, width) -> a scalar."""
        before = steps.previous()
        first = len(event) - len(before)
        item, came = steps.item[first:], event[first:]
        other = shuffled_within(domain[steps.row[first:]])
        return tells_next(interest[before], came, came[other], item != item[other])
