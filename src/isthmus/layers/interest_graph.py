"""A history as a graph of interests: alike events are joined, fused as far as a candidate asks for them, and pooled (SURGE).

Nodes are events, oldest first.  A graph is the user's alone; candidates meet it in ``fuse``.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from isthmus.errors import ConfigError
from isthmus.layers.attention import masked_softmax
from isthmus.layers.evolution import GatedUnit
from isthmus.layers.target_attention import TargetAttention

TIE = 1e-5  # similarities closer than this count as equal: an item that comes twice gives ties that rounding must not break
FAINT = -60.0  # scores further below a row's highest one count as this far: e ** -60 is still a float32, and sums of it are not 0
SMALL = 1e-12


@dataclass(frozen=True, slots=True)
class Pooled:
    """The interests that a graph was pooled to.

    Attributes:
        vector: (B, C, m, width) h*, in the order of clusters.
        score: (B, C, m) gamma*; sums to 1, or is 0 for a user without events.
        assignment: (B, C, L, m) S; rows of events sum to 1, rows of padding are 0.
    """

    vector: Tensor
    score: Tensor
    assignment: Tensor


class InterestGraph(nn.Module):
    """Builds a graph of events, fuses interests on it and pools it (eq. 1 to 11).

    ::

        M_ij = mean over heads of cos(w * h_i, w * h_j)                                     (eq. 1, 2)
        A_ij = 1 if M_ij is among the share ``edges`` of all n^2 of its user, or i = j, else 0      (eq. 3)
        a_j  = a network of [h_j, c_j, W_c h_j * c_j]          c_j: the mean over j's neighbours     (eq. 6)
        b_j  = a network of [h_j, q, W_q h_j * q]                                           (eq. 7)
        h'_i = LeakyReLU(W_a sum over neighbours j of softmax_j(a_j + b_j) h_j + h_i)       (eq. 4, 8)
        S_i  = softmax(W_p sum over neighbours j of h'_j)                                   (eq. 11)
        h* = S' h',   gamma* = S' softmax(b)                                                (eq. 9, 10)

    An edge is there or not.  So that w learns, the gradient of an edge that is there goes to its M_ij.

    Args:
        width: of an event and a candidate.
        clusters: m, the number of interests.
        heads: weight vectors w.
        edges: share of pairs that are joined, above 0, at most 1; all that tie with the last of them are too.
        hidden: width of the two networks' hidden layer.

    Raises:
        ConfigError: a number below 1, or a share outside (0, 1].
    """

    def __init__(self, width: int, *, clusters: int = 8, heads: int = 4, edges: float = 0.5, hidden: int = 40) -> None:
        super().__init__()
        if min(clusters, heads, hidden) < 1:
            raise ConfigError(f"clusters = {clusters}, heads = {heads}, hidden = {hidden}", "1 or more of each", "try 8, 4 and 40")
        if not 0 < edges <= 1:
            raise ConfigError(f"edges = {edges!r}", "a share above 0, at most 1", "try 0.5")
        self.edges = edges
        self.metric = nn.Parameter(torch.rand(heads, width) + 0.5)  # w: heads that start alike would stay so
        self.cluster, self.asked = (TargetAttention(width, [hidden], activation=_leaky, transfer=True) for _ in range(2))
        self.message = nn.Linear(width, width, bias=False)  # W_a
        self.assign = nn.Linear(width, clusters, bias=False)  # W_p

    def adjacency(self, x: Tensor, real: Tensor) -> Tensor:
        """Events (B, L, width), of which (B, L) bool are no padding -> (B, L, L) of 0 and 1; symmetric, 1 from each event to itself."""
        if not real.shape[1]:
            return x.new_zeros(x.shape[0], 0, 0)
        found, both = similarity(x, self.metric), real[:, None] & real[:, :, None]
        with torch.no_grad():
            ordered = found.masked_fill(~both, -torch.inf).flatten(1).sort(1, descending=True).values
            rank = (real.sum(1).square().double() * self.edges).ceil().long().clamp_min(1)
            least = ordered.gather(1, rank[:, None] - 1)[..., None] - TIE
            itself = torch.eye(real.shape[1], dtype=torch.bool, device=x.device)
            joined = (both & ((found >= least) & (found.transpose(1, 2) >= least) | itself)).to(x.dtype)
        return joined + (found - found.detach()) * joined

    def fuse(self, x: Tensor, adjacency: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
        """Fused events, and how much the candidate asks for each.

        Args:
            x: (B, L, width) events.
            adjacency: (B, L, L), see above.
            query: (B, C, width) candidates.

        Returns:
            (B, C, L, width) h', 0 at padding; (B, C, L) the softmax of b over a row's events, 0 at padding.
        """
        real = adjacency.diagonal(dim1=1, dim2=2).detach() > 0
        row, place = real.nonzero(as_tuple=True)
        event = x[row, place]
        around = (adjacency @ x / adjacency.sum(2, keepdim=True).clamp_min(1))[row, place]
        centre = self.cluster.weights(event, torch.arange(row.shape[0], device=row.device), around[:, None])  # a: (E, 1)
        asked = self.asked.weights(event, row, query)  # b: (E, C)
        lowest = asked.new_full((*real.shape, query.shape[1]), torch.finfo(asked.dtype).min)
        total, asked = (lowest.index_put((row, place), score) for score in (centre + asked, asked))
        gamma = masked_softmax(asked.transpose(1, 2), real[:, None])
        return self._passed(x * real[..., None], adjacency, total).transpose(1, 2), gamma

    def _passed(self, x: Tensor, adjacency: Tensor, score: Tensor) -> Tensor:
        """Events (B, L, width) and the weights' logarithms (B, L, C) -> (B, L, C, width).

        W_a is applied once per event.  A softmax over neighbours is a quotient of two products with A: there is no L x L per candidate.
        """
        if not x.shape[1]:
            return x.new_zeros(*score.shape, x.shape[2])
        weight = (score - score.detach().amax(1, keepdim=True)).clamp_min(FAINT).exp()
        total = (adjacency @ weight).clamp_min(torch.finfo(weight.dtype).tiny)
        sent = weight[..., None] * self.message(x)[:, :, None]
        received = (adjacency @ sent.flatten(2)).view(sent.shape) / total[..., None]
        return F.leaky_relu(received + x[:, :, None])

    def pool(self, fused: Tensor, gamma: Tensor, adjacency: Tensor) -> Pooled:
        """The interests that fused events belong to.

        Args:
            fused: (B, C, L, width), see ``fuse``.
            gamma: (B, C, L), see ``fuse``.
            adjacency: (B, L, L).
        """
        real = adjacency.diagonal(dim1=1, dim2=2).detach()
        near = torch.einsum("bij,bcjm->bcim", adjacency, self.assign(fused))
        assignment = near.softmax(3) * real[:, None, :, None]
        turned = assignment.transpose(2, 3)
        return Pooled(turned @ fused, (turned @ gamma[..., None]).squeeze(3), assignment)


def similarity(x: Tensor, metric: Tensor) -> Tensor:
    """Events (B, L, width), weight vectors (heads, width) -> (B, L, L): the mean over heads of weighted cosines (eq. 1, 2)."""
    heads = F.normalize(x[:, :, None] * metric, dim=3, eps=1e-6).flatten(2)
    return heads @ heads.transpose(1, 2) / len(metric)


def _leaky(width: int) -> nn.Module:
    return nn.LeakyReLU()


def augru(unit: GatedUnit, interest: Tensor, attention: Tensor) -> Tensor:
    """The state after all interests, each of which moves it as far as attention lets it (eq. 16).

    Args:
        unit: the recurrence.
        interest: (B, C, m, width), in order.
        attention: (B, C, m) scales the update gates.

    Returns:
        (B, C, size of the state); 0 where all attention is.
    """
    state = interest.new_zeros(*interest.shape[:2], unit.size)
    for given, scale in zip(unit.input(interest).unbind(2), attention.unbind(2), strict=True):
        state = unit.step(given, state, scale)
    return state


def assignment_terms(assignment: Tensor, adjacency: Tensor) -> dict[str, Tensor]:
    """What makes events that are joined go to one interest, each event to one, and early ones to early ones (eq. 12 to 14).

    ::

        same_mapping      = || A - S S' ||_F
        single_affiliation = mean over events of the entropy of S_i
        relative_position = || p - (1, ..., m) ||_2      p_k: the mean over what belongs to k of i m / n, event i of n

    Args:
        assignment: (B, C, L, m) S.
        adjacency: (B, L, L) A.

    Returns:
        Means over rows with events and over candidates.
    """
    real = adjacency.diagonal(dim1=1, dim2=2).detach()
    count = real.sum(1).clamp_min(1)[:, None]
    clusters = assignment.shape[3]
    near = torch.einsum("bij,bcjm->bcim", adjacency, assignment)
    together = assignment.transpose(2, 3) @ assignment
    square = adjacency.square().sum((1, 2))[:, None] - 2 * (assignment * near).sum((2, 3)) + together.square().sum((2, 3))
    entropy = -(assignment * assignment.clamp_min(SMALL).log()).sum((2, 3)) / count
    place = real.cumsum(1) * clusters / count
    share = assignment.sum(2)
    mean = (assignment * place[:, None, :, None]).sum(2) / share.clamp_min(SMALL)
    apart = torch.linalg.vector_norm(mean - torch.arange(1, clusters + 1, device=mean.device), dim=2)
    terms = {"same_mapping": square.clamp_min(SMALL).sqrt(), "single_affiliation": entropy, "relative_position": apart}
    some = real.any(1)
    seen = some.sum().clamp_min(1) * max(assignment.shape[1], 1)
    return {name: (value * some[:, None]).sum() / seen for name, value in terms.items()}
