"""PiNet: two sequences side by side; what a shared account did in one domain is filtered for the other.

Ma, Ren, Lin, Chen, Ma, de Rijke: pi-Net: A Parallel Information-sharing Network for Shared-account Cross-domain Sequential
Recommendations, SIGIR 2019.

For a row of domain A, whose account has events in A and events 1 ... t in B:

    h_A, h_B,i = GRU_A, GRU_B                              the state in A, and after each event in B                  (eq. 1, 2)
    f_k  = sigmoid(W_f h_B,i + W_A h_A + U_f s_i-1 + V_f u_k + b_f)     what latent user k lets through              (eq. 3)
    c_k  = tanh(W_c h_B,i + U_c s_i-1 + V_c u_k + b_c)                  what is new                                  (eq. 4)
    s_i  = mean over k of f_k c_k + (1 - f_k) s_i-1                     shared-account filter unit                   (eq. 5, 6)
    z    = the last state of a GRU over s_1 ... s_t                     cross-domain transfer unit                   (eq. 7)
    score(item) = [e_item, e_item]' [h_A, z] + b_A,item                                                              (eq. 8)

u_1 ... u_K are learnt: nobody knows who shares an account.  Each domain has a filter and a transfer unit of its own for what comes
in.  For clicks the level of the domain is added.

Deviations: h_A is the state at the moment predicted, not the one at the time of event i; domains share one table of items, and e is
both what a GRU reads (with its fields side by side) and what states are compared with (their sum), which the paper learns apart; with
more than two domains events of all others pass the filter in order of time; an account without events elsewhere has z = 0; a GRU's
start is learnt, and what is new in a state starts as the event itself.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isthmus.batch import Batch, Needs
from isthmus.errors import ConfigError
from isthmus.layers.biases import Levels
from isthmus.layers.bridges import Factors, choose
from isthmus.layers.domain import Offsets, PerDomain, domain_of_rows, grouped_linear
from isthmus.layers.drawing import alone, drawing, recurrence
from isthmus.layers.dropout import Dropout
from isthmus.layers.features import EntityFields
from isthmus.layers.growing import Stacked
from isthmus.layers.parallel import ParallelEncoders, Recurrent, States
from isthmus.model import Retriever
from isthmus.schema import Schema


class _AccountFilter(Stacked):
    """The shared-account filter unit (eq. 3-6), one for each domain.

    Weights have the gate's rows first, then those of what is new.

    Args:
        domains: number of domains.
        dim: width of all vectors.
        users: K, latent users of an account.
    """

    stacked: ClassVar[tuple[str, ...]] = ("event", "own", "before", "latent", "users", "bias")

    def __init__(self, domains: int, dim: int, users: int) -> None:
        super().__init__()

        def weight(out: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(domains, out, dim).uniform_(-1, 1) / math.sqrt(dim))

        self.event, self.before, self.latent, self.own = weight(2 * dim), weight(2 * dim), weight(2 * dim), weight(dim)
        self.users = nn.Parameter(torch.randn(domains, users, dim))  # far apart: users who start alike stay alike
        self.bias = nn.Parameter(torch.zeros(domains, 2 * dim))
        with torch.no_grad():  # what is new starts as the event itself, as in ``Recurrent``
            self.event[:, dim:] = torch.eye(dim)

    def forward(self, event: Tensor, own: Tensor, offsets: Offsets) -> Tensor:
        """States elsewhere (N, L, dim) and own ones (N, dim), rows ordered by domain -> (N, L, dim)."""
        rows, steps, dim = event.shape
        x = grouped_linear(event.flatten(0, 1), [o * steps for o in offsets], self.event, self.bias).view(rows, steps, -1)
        x = x + F.pad(grouped_linear(own, offsets, self.own), (0, dim))[:, None]  # the own state moves the gate alone
        users = (self.users @ self.latent.transpose(1, 2))[domain_of_rows(offsets, x.device)]  # (N, K, 2 dim)
        state, states = x.new_zeros(rows, dim), list[Tensor]()
        only = alone(offsets)
        if only is not None:
            before = self.before[only]
            each = recurrence(lambda h, now: (self._step(now + F.linear(h, before), h, users),), (state,), (x.transpose(0, 1),))
            return each.transpose(0, 1)
        for now in x.unbind(1):
            state = self._step(now + grouped_linear(state, offsets, self.before), state, users)
            states.append(state)
        return torch.stack(states, 1)

    @staticmethod
    def _step(now: Tensor, state: Tensor, users: Tensor) -> Tensor:
        """What is given (N, 2 dim), states (N, dim), latent users (N, K, 2 dim) -> states."""
        gate, new = (now[:, None] + users).chunk(2, -1)
        return torch.lerp(state[:, None], new.tanh(), gate.sigmoid()).mean(1)


class PiNet(Retriever):
    """A GRU per domain; what passes the account filter is added by another one.

    Args:
        schema: of an encoded data set.
        dim: width of an item's vector and of all states.
        users: K, latent users of an account, at least one.
        dropout: share of [h_A, z] dropped in training.
        id_dropout: share of item ids replaced by "unknown" in training.

    Raises:
        ConfigError: fewer than one latent user, or a share outside [0, 1).
    """

    needs: ClassVar[Needs] = Needs(history=True, cross_history=True)
    paper: ClassVar[str] = "Ma et al., pi-Net, SIGIR 2019"
    tasks: ClassVar[tuple[str, ...]] = ("ctr", "retrieval", "next_item")  # sequences do not say what was rated well

    def __init__(self, schema: Schema, *, dim: int = 32, users: int = 4, dropout: float = 0.0, id_dropout: float = 0.05) -> None:
        super().__init__(schema)
        if users < 1:
            raise ConfigError(f"users = {users}", "1 or more latent users of an account", "try 4")
        self.dim, self.dropout, domains = dim, Dropout(dropout), len(schema.domains)
        self.levels = Levels(schema)
        self.items = EntityFields(schema.item, dim, id_dropout=id_dropout, std=0.1)
        self.biases = Factors(schema.item, domains, 0)  # biases alone
        self.encoders = ParallelEncoders(domains, self.items.fields * dim, dim)
        self.filters = _AccountFilter(domains, dim, users)
        self.transfers = PerDomain(domains, lambda: Recurrent(dim, dim))

    def user_vector(self, batch: Batch) -> Tensor:
        """(B, 2 dim + 2): h_A, z, 1 for the item's bias, and the level."""
        own, other = self.encoders(batch, self.items)
        known = torch.cat([own.last, self.transferred(batch, own.last, other)], 1)
        level = self.levels.level[batch.domain, None]
        return torch.cat([self.dropout(known), torch.ones_like(level), level], 1)

    def item_vector(self, item: Tensor, domain: Tensor) -> Tensor:
        """Item codes (...) and domain indices of the same shape -> (..., 2 dim + 2)."""
        vector, bias = self.items(item).sum(-2), self.biases(item, domain)
        return torch.cat([vector, vector, bias, torch.ones_like(bias)], -1)

    def transferred(self, batch: Batch, own: Tensor, other: States) -> Tensor:
        """z (B, dim), of the rows' own states (B, dim) and of those elsewhere; zeros for rows without any."""
        if drawing():  # all rows, as none at all would be too few for a GRU of ONNX
            passed = self.transfers(self.filters(other.state, own, batch.offsets), batch.offsets)
            return States(passed, other.length).last * (other.length > 0)[:, None]
        rows = choose(batch, other.length > 0)
        none = own.new_zeros(len(batch), self.dim)
        if not len(rows.place):
            return none
        filtered = self.filters(other.state[rows.place], own[rows.place], rows.offsets)
        passed = self.transfers(filtered, rows.offsets)
        return none.index_copy(0, rows.place, States(passed, other.length[rows.place]).last)
