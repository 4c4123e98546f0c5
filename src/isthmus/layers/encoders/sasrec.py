"""SASRec's encoder: every event looks back at the ones before it (Kang and McAuley, ICDM 2018)."""

from __future__ import annotations

from torch import Tensor, nn

from isthmus.errors import ConfigError
from isthmus.layers.causal_attention import causal_attention
from isthmus.layers.dropout import Dropout
from isthmus.layers.encoders._base import Encoder, Places


class SelfAttention(Encoder):
    """Blocks of causal self-attention and a network for each slot, with norms before each and at the end.

    ::

        x = LN(e + p),   x = x + Drop(Attention(LN(x))),   x = x + Drop(W2 ReLU(W1 LN(x))),   s = LN(x)

    Deviations: keys and values see the norm too (the paper gives it to queries alone); places are counted from a sequence's begin, so
    that each is trained by every sequence that gets so far.

    Args:
        dim: width of an event and of a state.
        blocks: how many.
        heads: must divide ``dim``.
        length: places that are told apart; later ones are the last.  0: none are, events bring their own.
        dropout: share of activations dropped in training.

    Raises:
        ConfigError: ``heads`` does not divide ``dim``, fewer than 0 places, or a dropout outside [0, 1).
    """

    def __init__(self, dim: int, *, blocks: int = 2, heads: int = 1, length: int = 51, dropout: float = 0.2) -> None:
        super().__init__(dim, dropout=dropout)
        if heads < 1 or dim % heads:
            raise ConfigError(f"dim = {dim}, heads = {heads}", "heads that divide dim", "try heads=1")
        if length < 0 or blocks < 1:
            raise ConfigError(f"length = {length}, blocks = {blocks}", "0 or more places, 1 or more blocks", "use the defaults")
        self.place = Places(length, dim) if length else None
        self.first, self.last = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.blocks = nn.ModuleList(_Block(dim, heads, dropout) for _ in range(blocks))
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, dim) -> (B, T, dim)."""
        x = self.dropout(self.first(x if self.place is None else self.place(x)))
        for block in self.blocks:
            x = block(x)
        return self.last(x)


class _Block(nn.Module):
    """One step of attention and one network."""

    def __init__(self, dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.norm_wide = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.project, self.out = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.wide, self.narrow = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        """(B, T, dim) -> (B, T, dim)."""
        qkv = self.project(self.norm(x)).unflatten(2, (3, self.heads, -1))
        x = x + self.dropout(self.out(causal_attention(qkv, self.dropout.share if self.training else 0.0)))
        return x + self.dropout(self.narrow(self.dropout(self.wide(self.norm_wide(x)).relu())))
