"""DACDR: what a user did in other domains, read twice: for the target domain, then for the item.

Luo, Ma, Nie, Peng, Lin, Shao, Xu: Domain-Aware Cross-Attention for Cross-Domain Recommendation, ICASSP 2024.  With behaviours
X, tokens e_d of the target domain and e_v of the candidate, and CA as in ``isthmus.layers.attention`` (eq. 1, 2)::

    e_1    = CA(e_d, X, X)                            domain-level (eq. 3)
    e_z    = CA(e_v, e_1, e_1)                        item-level (eq. 4), z = seq over ids, side over the items' fields
    e_hat  = g([e_seq, e_side, e_d])                  domain encoder (eq. 6)
    logit  = h([e_hat, e_seq, e_side, e_v, e_d])      eq. 7; trained by the task's own loss (eq. 8)

Departures from the paper, each a setting.  Eq. 3 and 4 as printed let the behaviours ask (``queries="sequence"``): with one
key, one domain token or an item without fields, the softmax is 1 and the behaviours have no say.  ``start="bias"`` adds
biases (``isthmus.layers.dacdr.Start``) to the logit, whose network then starts at 0, and gives their numbers to a small network
of their own, which bends them.  h does not see these numbers unless asked to (``numbers``): a row is left out of them in
training, so that beside an id, which stands for what they are with it, they tell its label.  h also reads the user's id and
fields, the product of her id with the candidate's, and the own domain's history (``own_history``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from isthmus.batch import Batch, Needs, Output
from isthmus.data.samples import samples
from isthmus.errors import ConfigError, nearest
from isthmus.insight import Insight
from isthmus.layers.attention_looks import AttentionLooks
from isthmus.layers.behaviours import EventKinds, Events, events_of
from isthmus.layers.biases import Biases
from isthmus.layers.checks import require_share
from isthmus.layers.dacdr import TwoStep
from isthmus.layers.features import ContextFields, EntityFields
from isthmus.layers.mlp import MLP, start_at_zero
from isthmus.layers.start import BEND, Start
from isthmus.layers.table import DomainTable
from isthmus.model import Model, evaluating
from isthmus.schema import Schema

if TYPE_CHECKING:
    from isthmus.data.dataset import Dataset

QUERIES = ("target", "sequence")
STARTS = ("bias", "level")
SAMPLE = 2048  # rows of a domain that attention is averaged over


class DACDR(Model):
    """Domain-aware cross-attention.

    Args:
        schema: of an encoded data set.
        dim: width of a token.
        tokens: learnt tokens of a domain, besides one for each context field.
        hidden: widths of the hidden layers of g and h.
        heads: of both attention steps; must divide ``dim``.
        queries: ``target``: domain and item ask, behaviours answer; ``sequence``: as printed.
        domain_attention: False: without step 1 (w/o DA).
        item_attention: False: without step 2 (w/o IA).
        norm: queries and keys are normalised before they are compared.  False: as printed; the weights stay close to even.
        start: ``bias``: from biases of items and users; ``level``: from the domain's mean label alone (as printed).
        shrink_items: events that a domain's mean is worth against an item's own, where that starts to be learnt.
        shrink_users: events that no bias of a user is worth, when ratings of items are freed of it; None: they are taken as they are.
        user_id: h reads the user's id; what it learns of known users says little of new ones.
        own_history: read the row's own domain's history beside the others'.
        own_dropout: share of rows whose own history is left out in training, so that users without one are known.
        products: h also reads the products of the transferred tokens and the candidate's id.
        numbers: h also reads the biases' numbers: for users and items with so many events that one hardly moves them.
        dropout: share of hidden activations dropped in training.
        id_dropout: share of ids replaced by "unknown" in training.
        std: standard deviation that tokens of ids and fields start with.
        own_attention: names of domains with W_Q, W_K, W_V of their own; the others share theirs.

    Raises:
        ConfigError: no such direction, start or domain, or a number out of range.
    """

    needs: ClassVar[Needs] = Needs(history=True, cross_history=True, behaviour=True, history_label=True, context=True)
    paper: ClassVar[str] = "Luo et al., Domain-Aware Cross-Attention for Cross-Domain Recommendation, ICASSP 2024"

    def __init__(
        self,
        schema: Schema,
        *,
        dim: int = 16,
        tokens: int = 4,
        hidden: Sequence[int] = (64, 32),
        heads: int = 1,
        queries: str = "target",
        domain_attention: bool = True,
        item_attention: bool = True,
        norm: bool = True,
        start: str = "bias",
        shrink_items: float = 5.0,
        shrink_users: float | None = 10.0,
        user_id: bool = True,
        own_history: bool = True,
        own_dropout: float = 0.5,
        products: bool = False,
        numbers: bool = False,
        dropout: float = 0.0,
        id_dropout: float = 0.05,
        std: float = 0.01,
        own_attention: Sequence[str] = (),
    ) -> None:
        super().__init__(schema)
        for name, value, known in (("queries", queries, QUERIES), ("start", start, STARTS)):
            if value not in known:
                raise ConfigError(f"{name} = {value!r}", f"one of {known}", nearest(str(value), known))
        if tokens < 1:
            raise ConfigError(f"tokens = {tokens!r}", "1 or more", "try 4")
        require_share("own_dropout", own_dropout)
        own = [schema.domain_index(name) for name in own_attention]
        copy_of = [own.index(d) + 1 if d in own else 0 for d in range(len(schema.domains))]
        if not own_history:
            self.needs = Needs(cross_history=True, behaviour=True, history_label=True, context=True)  # type: ignore[misc]
        self.tokens, self.own_history, self.own_dropout = tokens, own_history, own_dropout
        self.user_id = user_id
        self.users = EntityFields(schema.user, dim, id_dropout=id_dropout, std=std) if user_id or schema.user.fields else None
        self.items = EntityFields(schema.item, dim, id_dropout=id_dropout, std=std)
        self.domain = DomainTable(len(schema.domains), tokens * dim, std=0.1)
        self.context = ContextFields(schema.context, dim) if schema.context else None
        self.biases = Biases(schema, shrink_items, shrink_users)
        self.start = Start(schema, own_history, shrink_items) if start == "bias" else None
        self.sequences = max(1, len(schema.behaviours))
        domain_tokens = tokens + len(schema.context)

        def stack() -> TwoStep:
            return TwoStep(
                copy_of,
                dim,
                heads,
                domain_tokens=domain_tokens,
                item_tokens=self.items.fields,
                sequences=self.sequences,
                queries=queries,
                domain_attention=domain_attention,
                item_attention=item_attention,
                norm=norm,
            )

        self.kinds = nn.ModuleList(EventKinds(schema, dim) for _ in range(1 + bool(schema.item.fields)))
        self.stacks = nn.ModuleList(stack() for _ in self.kinds)
        self.products, self.numbers = products, numbers and start == "bias"
        transferred = sum(s.width for s in self.stacks if isinstance(s, TwoStep))
        width = transferred + domain_tokens * dim
        self.encoder = MLP(width, hidden, dropout=dropout, out=dim)
        width_of_numbers = 0 if self.start is None else self.start.width
        profile = len(schema.user.fields) + 2 * user_id  # fields, id, id x item
        more = products * transferred + self.numbers * width_of_numbers
        self.head = MLP((2 + self.items.fields + profile) * dim + width + more, hidden, dropout=dropout, out=1)
        self.bend = None if self.start is None else MLP(width_of_numbers, BEND, out=1)
        if self.bend is not None:
            for network in (self.head, self.bend):
                start_at_zero(network.layers[-1])

    def forward(self, batch: Batch) -> Output:
        """Logits (B, C)."""
        events = self._events(batch)
        domain = self._domain_tokens(batch)
        item = self.items(batch.item)
        mask = events.sequences(self.sequences)
        transferred = [stack(x, mask, domain, item, batch.offsets) for stack, x in zip(self.stacks, self._behaviours(events), strict=True)]

        def each(x: Tensor) -> Tensor:
            return x.expand(-1, batch.item.shape[1], -1)

        known = [*map(each, transferred), each(domain.flatten(1)[:, None])]
        encoded = self.encoder(torch.cat(known, 2))
        known += [encoded, item.flatten(2), encoded * item[:, :, 0]]
        if self.products:
            known += [(x.unflatten(2, (-1, item.shape[3])) * item[:, :, :1]).flatten(2) for x in transferred]
        if self.users is not None:
            user = self.users(batch.user)
            known.append(each(user[:, 1 - self.user_id :].flatten(1)[:, None]))
            if self.user_id:
                known.append(user[:, None, 0] * item[:, :, 0])
        if self.start is None or self.bend is None:
            level = self.biases.level[batch.domain][:, None]
            return Output(level + self.head(torch.cat(known, 2)).squeeze(2))
        first, numbers = self.start(batch, events, self.biases)
        if self.numbers:
            known.append(numbers)
        return Output(first + (self.bend(numbers) + self.head(torch.cat(known, 2))).squeeze(2))

    @classmethod
    def grown_args(cls, args: dict[str, Any], new_domains: tuple[str, ...]) -> dict[str, Any]:
        """New domains have W_Q, W_K, W_V of their own, so that training them (3.5 of the paper) leaves the others' as they are."""
        return {**args, "own_attention": [*args.get("own_attention", ()), *new_domains]}

    @property
    def domain_asks(self) -> bool:
        """Step 1 asks the behaviours, so that there is attention over them."""
        stack = self.stacks[0]
        return isinstance(stack, TwoStep) and stack.target and stack.domain is not None

    def attention(self, batch: Batch) -> tuple[Events, Tensor]:
        """What step 1 looks at, over ids.

        Returns:
            The events of the batch, and the weights (B, sequences, tokens, length), the mean over heads: ``events.place`` says
            which slot an event has.  Each row's weights sum to 1 over the events of a sequence, and are 0 elsewhere.

        Raises:
            ConfigError: a model in which the behaviours are not asked by the domain.
        """
        stack = self.stacks[0]
        assert isinstance(stack, TwoStep)
        if not self.domain_asks:
            raise ConfigError("attention over behaviours", "queries='target' and domain_attention", "build the model with both")
        events = self._events(batch)
        x, mask = self._behaviours(events)[0], events.sequences(self.sequences)
        return events, stack.domain_weights(x, mask, self._domain_tokens(batch), batch.offsets).mean(2)

    def insights(self, dataset: Dataset) -> list[Insight]:
        """How much of the attention each domain's events get, for each target domain, and by behaviour type."""
        looks = AttentionLooks(self.schema)
        for _, batch in samples(dataset, self.needs, SAMPLE) if self.domain_asks else ():
            looks.add(*self._seen(batch))
        return looks.averages()

    def look(self, dataset: Dataset, batches: Sequence[Batch]) -> list[Insight]:
        """The same for one user, and the events that get most of it."""
        looks = AttentionLooks(self.schema)
        for batch in batches if self.domain_asks else ():
            seen = self._seen(batch)
            looks.add(*seen)
            looks.add_events(*seen, dataset.item_vocabulary)
        return looks.of_one()

    def _seen(self, batch: Batch) -> tuple[str, Events, Tensor]:
        """The domain of the first row, by name, and ``attention``."""
        with torch.no_grad(), evaluating(self):
            return self.schema.domain_names[int(batch.domain[0])], *self.attention(batch.to(self.biases.level.device))

    def _domain_tokens(self, batch: Batch) -> Tensor:
        """(B, tokens + context fields, dim)."""
        own = self.domain(batch.domain + 1).unflatten(1, (self.tokens, -1))
        return own if self.context is None else torch.cat([own, self.context(batch.context)], 1)

    def _events(self, batch: Batch) -> Events:
        hidden = None
        if self.training and self.own_history and self.own_dropout > 0:
            hidden = torch.rand(len(batch), 1, device=batch.user.device) < self.own_dropout
        return events_of(batch, self.biases, self.own_history, hidden)

    def _behaviours(self, events: Events) -> list[Tensor]:
        """The events' vectors, by ids and (where items have fields) by side information, (B, length, dim) each."""
        fields = self.items(events.item)
        sides = [fields[:, 0]] if len(self.kinds) == 1 else [fields[:, 0], fields[:, 1:].mean(1)]
        return [events.padded(side + kind(events)) for side, kind in zip(sides, self.kinds, strict=True)]
