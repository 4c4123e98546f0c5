"""CMF: collective matrix factorisation (Singh & Gordon, KDD 2008).

The users-by-items matrices of all domains are factorised at once, with the users' factors in common::

    r(u, i, d) = level_d + b_u + b_di + x_u' y_di        x_u, b_u: of the user, whatever the domain

which is the paper's X_d ~ f(U V_d') with a shared U; the link f and the divergence come with the task (identity and squared
error for ratings, logistic for clicks, softmax for retrieval).

Deviations: gradient steps over rows rather than alternating Newton projections; the domains' weights alpha are their numbers
of rows (``temperature`` of the training settings changes them); biases, which the paper leaves to constant columns;
the penalty is weight decay (``table_decay``).
"""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from isthmus.batch import Batch, Needs
from isthmus.layers.biases import Biases
from isthmus.layers.bridges import Factors, item_side, user_side
from isthmus.model import Retriever
from isthmus.schema import Schema


class CMF(Retriever):
    """One vector per user for all domains, one per item and domain.

    Args:
        schema: of an encoded data set.
        dim: number of factors.
    """

    needs: ClassVar[Needs] = Needs()
    paper: ClassVar[str] = "Singh & Gordon, Relational Learning via Collective Matrix Factorization, KDD 2008"

    def __init__(self, schema: Schema, *, dim: int = 16) -> None:
        super().__init__(schema)
        self.biases = Biases(schema)
        self.users = Factors(schema.user, 1, dim)
        self.items = Factors(schema.item, len(schema.domains), dim)

    def user_vector(self, batch: Batch) -> Tensor:
        """(B, dim + 2)."""
        return user_side(self.users(batch.user), self.biases.level[batch.domain])

    def item_vector(self, item: Tensor, domain: Tensor) -> Tensor:
        """(..., dim + 2)."""
        return item_side(self.items(item, domain))
