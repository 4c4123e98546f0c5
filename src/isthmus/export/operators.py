"""What torch's ONNX exporter has no translation for, or a slow one: operators of torch in terms of those of ONNX."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript import ir, opset18

op: Any = opset18  # its operators take arrays, numbers and None alike, which their types do not say
ONE = [1]
MOST_STEPS = 31  # among keys whose number is not known


def table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The translations, for ``torch.onnx.export``."""
    aten = torch.ops.aten
    return {
        aten.searchsorted.Tensor: searchsorted,
        aten.repeat_interleave.Tensor: repeat_interleave,
        aten.embedding_bag.padding_idx: embedding_bag,
        aten.bincount.default: bincount,
        aten.linalg_solve.default: solve,
        aten.sort.stable: sort,
    }


def searchsorted(
    keys: Any, wanted: Any, *, out_int32: bool = False, right: bool = False, side: str | None = None, sorter: Any = None
) -> Any:
    """Halving steps, as many as n keys (n,) may take: every wanted value (...) walks alone, so all go at once."""
    if sorter is not None or len(keys.shape) != 1:
        raise NotImplementedError("searchsorted in keys that are not one sorted line")
    small = op.LessOrEqual if right or side == "right" else op.Less
    before = op.Expand(op.Constant(value_int=-1), op.Shape(wanted))  # the last key that is known to be small
    left = keys.shape[0]
    if not isinstance(left, int):
        return _searchsorted(keys, wanted, before, small)
    while left:
        half = (left + 1) // 2
        left -= half  # as many as may be asked after it, whatever the answer: no step leads out of the keys
        further = op.Add(before, op.Constant(value_int=half))
        before = op.Where(small(op.Gather(keys, further), wanted), further, before)
    return op.Add(before, op.Constant(value_int=1))


def _searchsorted(keys: Any, wanted: Any, before: Any, small: Callable[..., Any]) -> Any:
    """The same in keys whose number is only known when the graph runs."""
    last = op.Sub(op.Squeeze(op.Shape(keys), [0]), op.Constant(value_int=1))
    padded = op.Concat(keys, op.Constant(value=ir.tensor([0], keys.dtype)), axis=0)  # so that there is one to look at
    for step in reversed(range(MOST_STEPS)):
        further = op.Add(before, op.Constant(value_int=1 << step))
        there = op.LessOrEqual(further, last)
        there = op.And(there, small(op.Gather(padded, op.Min(further, op.Add(last, op.Constant(value_int=1)))), wanted))
        before = op.Where(there, further, before)
    return op.Add(before, op.Constant(value_int=1))


def repeat_interleave(repeats: Any, *, output_size: Any = None) -> Any:
    """(n,) how often -> the numbers 0 to n - 1, each so often: how many have ended up to each place."""
    ends = op.CumSum(repeats, op.Constant(value_int=0))
    total = op.ReduceSum(repeats, keepdims=0)
    return _passed(ends, total)


def bincount(x: Any, weights: Any = None, minlength: Any = 0) -> Any:
    """How often each number comes; ``minlength`` may be a symbol."""
    if weights is not None:
        raise NotImplementedError("bincount with weights")
    least = op.Constant(value_int=minlength) if isinstance(minlength, int) else op.Squeeze(minlength)
    none = op.Constant(value_ints=[-1])  # so that there is a largest one
    size = op.Max(op.Add(op.ReduceMax(op.Concat(x, none, axis=0), keepdims=0), op.Constant(value_int=1)), least)
    line = op.Expand(op.Constant(value_int=0), op.Unsqueeze(size, [0]))
    return op.ScatterElements(line, x, op.Expand(op.Constant(value_int=1), op.Shape(x)), axis=0, reduction="add")


def embedding_bag(
    weight: Any,
    indices: Any,
    offsets: Any,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Any = None,
    include_last_offset: bool = False,
    padding_idx: int | None = None,
) -> tuple[Any, Any, Any, Any]:
    """Sums (mode 0) or means (1) of rows; what torch gives beside them is read by nobody."""
    if mode > 1 or include_last_offset:
        raise NotImplementedError("embedding_bag of maxima")
    counts = op.CastLike(op.Expand(op.Constant(value_float=1.0), op.Shape(indices)), weight)
    if padding_idx is not None:
        counts = op.CastLike(op.Not(op.Equal(indices, op.Constant(value_int=padding_idx))), weight)
    heavy = counts if per_sample_weights is None else op.Mul(counts, per_sample_weights)
    rows = op.Mul(op.Gather(weight, indices), op.Unsqueeze(heavy, [1]))
    total, number = _sums(rows, offsets), _sums(op.Unsqueeze(counts, [1]), offsets)
    if mode == 1:
        total = op.Div(total, op.Max(number, op.CastLike(op.Constant(value_float=1.0), weight)))
    return total, offsets, offsets, offsets


def sort(x: Any, *, stable: bool | None = None, dim: int = -1, descending: bool = False) -> tuple[Any, Any]:
    """Values and places; ONNX keeps the order of equal ones."""
    short = x.dtype in (ir.DataType.INT8, ir.DataType.BOOL)  # which runtimes do not sort
    size = op.Shape(x, start=dim, end=dim + 1 if dim != -1 else None)
    value, place = op.TopK(op.Cast(x, to=ir.DataType.INT32) if short else x, size, axis=dim, largest=int(descending), sorted=1)
    return op.CastLike(value, x) if short else value, place


def solve(left: Any, right: Any, **_: Any) -> Any:
    """X of A X = B, (..., n, n) each, by elimination without a search for pivots: for matrices that need none, such as I + S, S skew."""
    size = left.shape[-1]
    both = op.Concat(left, right, axis=-1)
    for k in range(size):
        row = op.Slice(both, [k], [k + 1], [-2])
        row = op.Div(row, op.Slice(row, [k], [k + 1], [-1]))
        itself = op.Constant(value=ir.tensor([[float(k == n)] for n in range(size)], left.dtype))
        both = op.Sub(both, op.Mul(op.Sub(op.Slice(both, [k], [k + 1], [-1]), itself), row))
    return op.Slice(both, [size], [2 * size], [-1])


def _sums(rows: Any, offsets: Any) -> Any:
    """Rows (N, d) -> their sums from each offset (n,) to the next."""
    if _even(offsets):  # all bags are of one size
        shape = op.Concat(op.Shape(offsets), op.Div(op.Shape(rows, end=1), op.Shape(offsets)), op.Shape(rows, start=1), axis=0)
        return op.ReduceSum(op.Reshape(rows, shape, allowzero=1), [1], keepdims=0)
    bag = op.Sub(_passed(offsets, op.Squeeze(op.Shape(rows, end=1), [0])), op.Constant(value_int=1))
    start = op.Expand(op.CastLike(op.Constant(value_float=0.0), rows), op.Concat(op.Shape(offsets), op.Shape(rows, start=1), axis=0))
    return op.ScatterND(start, op.Unsqueeze(bag, [1]), rows, reduction="add")


def _passed(bounds: Any, total: Any) -> Any:
    """Ascending bounds (n,) -> (total,) how many of them are at or below each of the places 0, 1, ..."""
    line = op.Expand(op.Constant(value_int=0), op.Add(op.Unsqueeze(total, [0]), op.Constant(value_ints=ONE)))
    ones = op.Expand(op.Constant(value_int=1), op.Shape(bounds))
    ends = op.CumSum(op.ScatterElements(line, bounds, ones, axis=0, reduction="add"), op.Constant(value_int=0))
    return op.Slice(ends, [0], [-1], [0])


def _even(offsets: Any) -> bool:
    """Whether offsets were counted up: ``F.embedding_bag`` of rows of one length."""
    node = offsets.producer()
    while node is not None and node.op_type in ("Cast", "Identity"):
        node = node.inputs[0].producer()
    return node is not None and node.op_type == "Range"
