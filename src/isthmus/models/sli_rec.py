"""SLi-Rec: a lasting taste and what the user is after now, and for each candidate how much of both.

Yu, Lian, Mahmoody, Liu, Xie: Adaptive User Modeling with Long and Short-Term Preferences for Personalized Recommendation, IJCAI 2019.

With x_j the events of the history, q the candidate and g the time since the last event::

    p_l   = sum over j of a_j x_j                   a = softmax over j of z' x_j                      attentive asymmetric SVD
    h_j   = an LSTM with gates for the time between events and until now (``isthmus.layers.time_lstm``)
    p_s   = sum over j of b_j h_j                   b = softmax over j of a network of [h_j, q, M h_j * q]
    alpha = sig(a network of [q, p_s, p_l, g])
    logit = level_d + MLP([user, domain, q, alpha p_s + (1 - alpha) p_l])

A time of t seconds is read as log(1 + t) / log(1 + a year), a constant scale; where only order counts, t are steps.  Without
times all of them are 0, and without a moment predicted "now" is the last event.

Deviations: the network reads the user's own fields and the domain too; W z of the long-term attention is one vector z; of the
short-term attention's parts M h_j and M h_j - q are sums and products of those that are there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isthmus.batch import Batch, Needs, Output
from isthmus.layers.attention import softmax_by_row
from isthmus.layers.biases import Levels
from isthmus.layers.features import EntityFields
from isthmus.layers.mlp import MLP
from isthmus.layers.table import DomainTable
from isthmus.layers.target_attention import TargetAttention
from isthmus.layers.time_lstm import TimeLSTM, scaled
from isthmus.model import Model
from isthmus.schema import PADDING, Schema


class SLiRec(Model):
    """Long-term attention, a time-aware LSTM, and their adaptive fusion.

    Args:
        schema: of an encoded data set.
        dim: width of a field's vector; the LSTM is as wide as an item with all its fields.
        attention: widths of the hidden layers of the short-term attention and of the fusion; at least one.
        hidden: widths of the network's hidden layers.
        dropout: share of activations dropped in training.
        id_dropout: share of ids replaced by "unknown" in training.
    """

    needs: ClassVar[Needs] = Needs(history=True, history_time=True)
    paper: ClassVar[str] = "Yu et al., Adaptive User Modeling with Long and Short-Term Preferences, IJCAI 2019"

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        attention: Sequence[int] = (80, 40),
        hidden: Sequence[int] = (128, 64),
        dropout: float = 0.0,
        id_dropout: float = 0.05,
    ) -> None:
        super().__init__(schema)
        self.levels = Levels(schema)
        self.users = EntityFields(schema.user, dim, id_dropout=id_dropout)
        self.items = EntityFields(schema.item, dim, id_dropout=id_dropout)
        self.domain = DomainTable(len(schema.domains), dim)
        width = self.items.fields * dim
        self.long = nn.Linear(width, 1, bias=False)
        self.lstm = TimeLSTM(width, width)
        self.short = TargetAttention(width, attention, activation=lambda width: nn.ReLU(), softmax=True, transfer=True)
        self.fusion = MLP(3 * width + 1, attention, out=1)
        self.mlp = MLP((self.users.fields + 1) * dim + 2 * width, hidden, dropout=dropout, out=1)

    def forward(self, batch: Batch) -> Output:
        """Logits (B, C)."""
        candidate = self.items(batch.item).flatten(2)
        long, short, idle = self.preferences(batch, candidate)
        alpha = self.fusion(torch.cat([candidate, short, long, idle], 2)).sigmoid()
        row = torch.cat([self.users(batch.user).flatten(1), self.domain(batch.domain + 1)], 1)
        x = torch.cat(
            [row[:, None].expand(-1, candidate.shape[1], -1), candidate, torch.lerp(long.to(short.dtype), short, alpha.to(short.dtype))], 2
        )
        return Output(self.mlp(x)[..., 0] + self.levels.level[batch.domain, None])

    def preferences(self, batch: Batch, candidate: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """p_l and p_s (B, C, width) for candidates (B, C, width), and g (B, C, 1); all 0 without a history."""
        assert batch.history is not None
        row, column = (batch.history != PADDING).nonzero(as_tuple=True)
        event = self.items(batch.history[row, column]).flatten(1)
        weight = softmax_by_row(self.long(event), row, batch.user.shape[0])
        long = candidate.new_zeros(batch.user.shape[0], event.shape[1]).index_add(0, row, weight * event)
        interval, span, idle = self.gaps(batch, row, column)
        short = self.short(self.lstm(event, row, batch.user.shape[0], interval, span, room=batch.history.shape[1]), row, candidate)
        return long[:, None].expand_as(candidate), short, idle[:, None, None].expand(-1, candidate.shape[1], 1)

    def gaps(self, batch: Batch, row: Tensor, column: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scaled times between events (row, column) of the histories, until now, and of rows since their last event.

        Args:
            batch: with times, or without.
            row, column: (E,) int64 places in (B, L), row after row.

        Returns:
            (E,), (E,) and (B,) float32.
        """
        assert batch.history is not None
        if batch.history_time is None:
            none = self.levels.level.new_zeros(len(row))
            return none, none, self.levels.level.new_zeros(len(batch))
        time, last = batch.history_time[row, column], batch.history_time[:, -1:].sum(1)
        before, there = (F.pad(x[:, :-1], (1, 0)) for x in (batch.history_time, batch.history))
        interval = ((batch.history_time - before) * (there != PADDING))[row, column]  # of a row's first event 0
        now = last if batch.time is None else batch.time
        idle = (now - last) * (batch.history[:, -1:] != PADDING).any(1)
        unit = self.schema.time_unit
        return scaled(interval, unit), scaled(now[row] - time, unit), scaled(idle, unit)
