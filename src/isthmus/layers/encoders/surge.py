"""SURGE's encoder: alike events are joined and fused, and a recurrence goes over what comes out (Chang et al., SIGIR 2021)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isthmus.errors import ConfigError
from isthmus.layers.attention import masked_softmax
from isthmus.layers.dropout import Dropout
from isthmus.layers.encoders._base import Encoder
from isthmus.layers.interest_graph import TIE, similarity


class FusedInterests(Encoder):
    """A graph in which every event is joined with earlier ones that are like it.

    ::

        x_t  = LN(e_t)
        M_tj = mean over heads of cos(w * x_t, w * x_j)                                              (eq. 1, 2)
        A_tj = 1 for the ceil(edges t) highest M_tj of j <= t, and for j = t; else 0                 (eq. 3)
        c_t  = mean over t's neighbours of x,   a_t = a network of [x_t, c_t, W_c x_t * c_t]         (eq. 6)
        b_tj = (W_q x_t) . x_j / sqrt(dim)                                                           (eq. 7)
        x'_t = LeakyReLU(sum over neighbours j of softmax_j(a_j + b_tj) W_a x_j + x_t)               (eq. 4, 8)
        s_t  = W_out GRU(x'_1, ..., x'_t) + b_out  [+ x_t]                                           (eq. 16)

    Deviations from the paper, and from ``isthmus.models.surge``, which keeps to it: an event is joined with what was before it alone, the
    best share of each event's own, since the best share of all pairs would know the whole history; the event asks in the place of
    the candidate, by a product instead of a network, as there are T^2 pairs; the graph is not pooled, for a pooled sequence has no
    places to be trained at.  An edge is there or not: so that w learns, the gradient of one that is there goes to its M_tj.

    Args:
        dim: width of an event and of a state.
        heads: weight vectors w.
        edges: share of an event's predecessors that it is joined with, above 0, at most 1; all that tie with the last of them are too.
        hidden: width of the network's hidden layer.
        residual: add the last event itself, normed, as attention's blocks do.
        dropout: share of the events' and the states' activations dropped in training.

    Raises:
        ConfigError: a number below 1, or a share out of its range.
    """

    def __init__(
        self, dim: int, *, heads: int = 4, edges: float = 0.5, hidden: int = 40, residual: bool = False, dropout: float = 0.2
    ) -> None:
        super().__init__(dim, dropout=dropout)
        if min(heads, hidden) < 1:
            raise ConfigError(f"heads = {heads}, hidden = {hidden}", "1 or more of each", "try 4 and 40")
        if not 0 < edges <= 1:
            raise ConfigError(f"edges = {edges!r}", "a share above 0, at most 1", "try 0.5")
        self.edges = edges
        self.norm = nn.LayerNorm(dim)
        self.metric = nn.Parameter(torch.rand(heads, dim) + 0.5)  # w: heads that start alike would stay so
        self.moved = nn.Linear(dim, dim, bias=False)  # W_c
        self.centre = nn.Sequential(nn.Linear(3 * dim, hidden), nn.LeakyReLU(), nn.Linear(hidden, 1, bias=False))
        self.asked, self.message = (nn.Linear(dim, dim, bias=False) for _ in range(2))  # W_q, W_a
        self.gru, self.out = nn.GRU(dim, dim, batch_first=True), nn.Linear(dim, dim)
        self.dropout, self.residual = Dropout(dropout), residual

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, dim) -> (B, T, dim)."""
        x = self.dropout(self.norm(x))
        states, _ = self.gru(self.fused(x, self.adjacency(x)))
        moved = self.out(self.dropout(states))
        return x + moved if self.residual else moved

    def adjacency(self, x: Tensor) -> Tensor:
        """Events (B, T, dim) -> (B, T, T) of 0 and 1: row t has its neighbours, itself among them."""
        found = similarity(x, self.metric)
        with torch.no_grad():
            place = torch.arange(x.shape[1], device=x.device)
            seen = place <= place[:, None]
            ordered = found.masked_fill(~seen, -torch.inf).sort(2, descending=True).values
            rank = ((place + 1).double() * self.edges).ceil().long() - 1
            least = ordered.gather(2, rank[None, :, None].expand(x.shape[0], -1, 1)) - TIE
            joined = (seen & (found >= least) | (place == place[:, None])).to(x.dtype)
        return joined + (found - found.detach()) * joined

    def fused(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """Events (B, T, dim) -> (B, T, dim), each with what its neighbours say."""
        around = adjacency @ x / adjacency.sum(2, keepdim=True)
        centre = self.centre(torch.cat([x, around, self.moved(x) * around], 2))  # a: (B, T, 1)
        score = centre.transpose(1, 2) + self.asked(x) @ x.transpose(1, 2) / math.sqrt(x.shape[2])
        weight = masked_softmax(score, adjacency.detach() > 0) * adjacency
        return F.leaky_relu(weight @ self.message(x) + x)
