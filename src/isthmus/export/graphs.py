"""``write_graph``: a model of one domain as an ONNX graph, whose weights stay in the safetensors file that all domains share.

The domain is a constant while the graph is drawn, so nothing of other domains' copies is computed.  Of a retriever the graph gives
users' vectors, of other models scores.  The domain's part of a stacked weight is a piece of the same file: the graphs hold no weights.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import math
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from isthmus.batch import Batch, history_field
from isthmus.errors import ConfigError
from isthmus.model import Model, Retriever, evaluating
from isthmus.schema import Schema
from isthmus.storage import whole_file

if TYPE_CHECKING:
    import onnx_ir as ir

CONTEXT = "context."  # stands before the name of a context field
FLOATS = ("history_label", "cross_label")
ROWS, CANDIDATES, EVENTS, VALUES = 3, 5, 7, 2  # of the example that is drawn; all but a fixed number of events are symbols
MOST = 1 << 30  # of each
HALF = "F16"  # what safetensors calls it
FOLDED = 1024  # numbers of a constant that is computed beforehand; what is larger, the runtime computes when it loads a graph

Size = int | str  # a number, or the name of what is only known when a graph runs


@dataclass(frozen=True)
class Graph:
    """An ONNX graph on disk.

    Attributes:
        inputs: names of the batch's fields that it reads, ``context.<name>`` for a context field.
        output: ``vector`` (B, d) of a retriever's users, or ``score`` (B, C).
        user: who asks makes a difference beyond her histories; False: of ``user`` only the number of rows is read.
        path: of the file; the weights lie beside it.
    """

    inputs: tuple[str, ...]
    output: str
    user: bool
    path: Path


def write_graph(model: Model, domain: int, path: Path, weights: Path, *, length: int) -> Graph:
    """Writes the graph of one domain, whole or not at all.

    B rows and C candidates may be any number from 1.  Histories have L = ``length`` events, or any number where the model wants
    whole ones; multi-valued context fields (B, M) any number of values.

    Args:
        model: on the CPU.
        domain: index of the domain that all rows belong to.
        path: of the graph.
        weights: what ``isthmus.checkpoint`` wrote of the model, in the same folder; what is in half precision there stays so in memory,
            and is computed with in single precision.
        length: events of a history.

    Raises:
        ConfigError: a package is missing, the weights lie elsewhere, or the model cannot be drawn.
        StorageError: the disk is full or the folder cannot be written.
    """
    require_packages()
    if weights.resolve().parent != path.resolve().parent:
        raise ConfigError(f"weights in {weights.parent}", f"in {path.parent}, beside the graph", "write both into one folder")
    import onnx_ir as ir

    output = "vector" if isinstance(model, Retriever) else "score"
    fields = _fields(model, length)
    with _quiet(), evaluating(model), torch.no_grad():
        try:
            drawn = _drawn(_OneDomain(model, domain), fields, output)
            _point(drawn.graph, model, weights)
            _simplify(drawn)
            _require_symbols(drawn.graph, fields)
        except Exception as error:
            came = f"{type(model).__name__}, of which torch {torch.__version__} draws no ONNX graph ({_reason(error)})"
            raise ConfigError(came, "a model that can be drawn", "serve its run, or choose another model") from error
        with whole_file(path) as temporary:
            ir.save(drawn, temporary, format="protobuf")
    asked = [use.node for value in drawn.graph.inputs if value.name == "user" for use in value.uses()]
    return Graph(tuple(str(value.name) for value in drawn.graph.inputs), output, any(node.op_type != "Shape" for node in asked), path)


def require_packages() -> None:
    """Looks for what drawing needs.

    Raises:
        ConfigError: it is not installed.
    """
    missing = [name for name in ("onnx", "onnxscript") if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(f"an ONNX graph, but {' and '.join(missing)} not installed", "both packages", "pip install 'isthmus[export]'")


def _reason(error: BaseException) -> str:
    """The first line of what went wrong first; around it torch wraps hundreds."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:200]


class _OneDomain(nn.Module):
    """A model all of whose rows are of one domain: the fields of a batch -> (B, d) or (B, C)."""

    def __init__(self, model: Model, domain: int) -> None:
        super().__init__()
        self.model, self.domain = model, domain

    def forward(self, given: dict[str, Tensor]) -> Tensor:
        user, domains = given["user"], len(self.model.schema.domains)
        fields: dict[str, Any] = {name: value for name, value in given.items() if not name.startswith(CONTEXT)}
        batch = Batch(
            **{"item": user.new_zeros(user.shape[0], 0), **fields},
            domain=torch.full_like(user, self.domain),
            offsets=tuple(user.shape[0] if d > self.domain else 0 for d in range(domains + 1)),
            context={name.removeprefix(CONTEXT): value for name, value in given.items() if name.startswith(CONTEXT)},
        )
        return self.model.user_vector(batch) if isinstance(self.model, Retriever) else self.model(batch).logit


def _fields(model: Model, length: int) -> dict[str, tuple[Size, ...]]:
    """The shapes of what a model reads, by name."""
    needs, schema = model.needs, model.schema
    found: dict[str, tuple[Size, ...]] = {"user": ("rows",)}
    if not isinstance(model, Retriever):
        found["item"] = ("rows", "candidates")
    there = {"item": True, "domain": True, "time": schema.timed, "behaviour": bool(schema.behaviours), "label": schema.label == "rating"}
    for name, columns in needs.histories.items():
        fields = [history_field(name, column) for column in columns if there[column]]
        found |= dict.fromkeys(fields, ("rows", f"{name}_events" if needs.whole_history else length))
    if needs.history_time and schema.timed:
        found["time"] = ("rows",)
    return found | _context(schema) if needs.context else found


def _context(schema: Schema) -> dict[str, tuple[Size, ...]]:
    return {CONTEXT + f.name: ("rows", f"{f.name}_values") if f.kind == "multi" else ("rows",) for f in schema.context}


def _drawn(model: _OneDomain, fields: dict[str, tuple[Size, ...]], output: str) -> ir.Model:
    """The graph as torch draws it, its weights inside."""
    from torch.export import Dim, export

    from isthmus.export.operators import table

    numeric = {CONTEXT + f.name for f in model.model.schema.context if f.kind == "numeric"}
    sizes = {"rows": ROWS, "candidates": CANDIDATES}
    given, symbols, shapes = dict[str, Tensor](), dict[str, Any](), dict[str, dict[int, Any]]()
    for name, shape in fields.items():
        example = [size if isinstance(size, int) else sizes.get(size, EVENTS if size.endswith("_events") else VALUES) for size in shape]
        given[name] = torch.zeros(example, dtype=torch.float32 if name in numeric or name in FLOATS else torch.int64)
        # From 2: a graph that is drawn for 1 too would ask at every turn whether there is but one, which ONNX never needs to know.
        shapes[name] = {n: symbols.setdefault(s, Dim(s, min=2, max=MOST)) for n, s in enumerate(shape) if isinstance(s, str)}
    with _closed(), torch.fx.experimental._config.patch(backed_size_oblivious=True):  # type: ignore[attr-defined]
        program = export(model, (given,), dynamic_shapes=(shapes,), strict=False)
        names: dict[str, Any] = {"input_names": list(given), "output_names": [output]}
        found = torch.onnx.export(program, **names, custom_translation_table=table(), dynamo=True, optimize=False, verbose=False)
    assert found is not None
    return found.model


def _require_symbols(graph: ir.Graph, fields: dict[str, tuple[Size, ...]]) -> None:
    """Refuses a graph in which a number of the example got stuck."""
    for value in graph.inputs:
        assert value.shape is not None
        for found, size in zip(value.shape, fields[str(value.name)], strict=True):
            if isinstance(size, str) and isinstance(found, int):
                raise ValueError(f"the number of {size} is fixed in it")


# ---------------------------------------------------------------- weights


def _point(graph: ir.Graph, model: Model, weights: Path) -> None:
    """Makes the weights in a graph point into their file."""
    import onnx_ir as ir

    start, header = _header(weights)
    state = model.state_dict()
    place = {_memory(tensor): name for name, tensor in state.items() if name in header}
    for value in graph.initializers.values():
        tensor = state.get(str(value.name).removeprefix("model."))
        if tensor is None or value.const_value is None or not tensor.numel() or _memory(tensor) not in place:
            continue
        held = header[place[_memory(tensor)]]
        begin, end = held["data_offsets"]
        drawn, half = value.const_value.dtype, held["dtype"] == HALF
        kind, shape = ir.DataType.FLOAT16 if half else drawn, ir.Shape(tensor.shape)
        at = {"offset": start + begin, "length": end - begin, "base_dir": weights.resolve().parent}
        value.const_value = ir.ExternalTensor(weights.name, dtype=kind, shape=shape, name=str(value.name), **at)
        if half:
            _widen(graph, value, drawn)


def _widen(graph: ir.Graph, weight: ir.Value, kind: ir.DataType) -> None:
    """Lets a graph go on in the precision it was drawn in: rows of a weight in half precision become wide once they are taken."""
    import onnx_ir as ir

    for node, place in tuple(weight.uses()):
        taken = node.op_type == "Gather" and place == 0
        narrow = node.outputs[0] if taken else weight
        users = tuple(narrow.uses()) if taken else ((node, place),)
        cast = ir.node("Cast", [narrow], attributes={"to": kind})
        wide = cast.outputs[0]
        wide.type, wide.shape = ir.TensorType(kind), narrow.shape
        narrow.type = ir.TensorType(ir.DataType.FLOAT16)
        for user, n in users:
            user.replace_input_with(n, wide)
        graph.insert_after(node, cast) if taken else graph.insert_before(node, cast)
    weight.type = ir.TensorType(ir.DataType.FLOAT16)


def _header(weights: Path) -> tuple[int, dict[str, Any]]:
    """Where the tensors of a safetensors file begin, and what it says of each."""
    with open(weights, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        return 8 + size, json.loads(file.read(size))


def _memory(tensor: Tensor) -> tuple[int, torch.Size, torch.dtype]:
    """Weights under several names are one in the file."""
    return tensor.data_ptr(), tensor.shape, tensor.dtype


def _simplify(drawn: ir.Model) -> None:
    """Computes what is constant, but for weights; removes what nobody reads, and what torch notes about its origin."""
    from onnx_ir.passes import common
    from onnxscript.optimizer import optimize_ir

    def fold(node: ir.Node) -> bool | None:
        return False if any(_is_weight(value) for value in node.inputs) else None

    optimize_ir(drawn, input_size_limit=FOLDED, output_size_limit=FOLDED, should_fold=fold)
    for node in list(drawn.graph):
        _take_piece(drawn.graph, node)
    common.RemoveUnusedNodesPass()(drawn)
    common.ClearMetadataAndDocStringPass()(drawn)
    for value in [value for value in drawn.graph.inputs if not value.uses()]:
        drawn.graph.inputs.remove(value)


def _is_weight(value: ir.Value | None) -> bool:
    import onnx_ir as ir

    return value is not None and isinstance(value.const_value, ir.ExternalTensor)


def _take_piece(graph: ir.Graph, node: ir.Node) -> None:
    """Replaces a node that takes a piece of a weight, such as a domain's copy, by a weight that is this piece of the file."""
    import onnx_ir as ir

    if not node.inputs or not _is_weight(node.inputs[0]) or len(node.outputs) != 1:
        return
    whole, out = node.inputs[0].const_value, node.outputs[0]  # type: ignore[union-attr]
    assert isinstance(whole, ir.ExternalTensor)
    found = _piece(node, tuple(whole.shape.numpy()))
    if found is None or out.is_graph_output():
        return
    begin, shape = found
    width, size = whole.nbytes // whole.size, math.prod(shape)
    at = {"offset": (whole.offset or 0) + begin * width, "length": size * width, "base_dir": whole.base_dir}
    tensor = ir.ExternalTensor(whole.location, dtype=whole.dtype, shape=ir.Shape(shape), name=str(out.name), **at)
    value = ir.Value(name=str(out.name), shape=tensor.shape, type=ir.TensorType(whole.dtype), const_value=tensor)
    out.replace_all_uses_with(value)
    graph.remove(node, safe=True)
    graph.register_initializer(value)


def _piece(node: ir.Node, shape: tuple[int, ...]) -> tuple[int, tuple[int, ...]] | None:
    """The first number that a node takes of a weight, and the shape of all it takes, where that is one run of numbers."""
    given = [None if value is None or value.const_value is None else value.const_value.numpy() for value in node.inputs[1:]]
    if any(value is None for value in given):
        return None
    row = math.prod(shape[1:])
    if node.op_type == "Gather" and given[0].ndim == 0 and node.attributes.get_int("axis", 0) == 0:  # type: ignore[union-attr]
        return int(given[0]) % shape[0] * row, shape[1:]  # type: ignore[arg-type]
    if node.op_type == "Slice" and len(given) > 2 and given[2].tolist() == [0] and (len(given) < 4 or given[3].tolist() == [1]):  # type: ignore[union-attr]
        begin, end, _ = slice(int(given[0][0]), int(given[1][0])).indices(shape[0])  # type: ignore[index]
        return (begin * row, (end - begin, *shape[1:])) if end > begin else None
    out = node.outputs[0].shape
    if node.op_type in ("Squeeze", "Unsqueeze", "Reshape") and out is not None and all(isinstance(n, int) for n in out):
        return 0, tuple(int(n) for n in out)  # type: ignore[arg-type]
    return None


@contextlib.contextmanager
def _closed() -> Iterator[None]:
    """Keeps GRUs closed in the block: to learn the shape of what one gives, torch would trace all its steps, again and again."""
    kernels, keys = torch.ops.aten.gru.input.py_kernels, (torch._C.DispatchKey.CompositeImplicitAutograd, torch._C.DispatchKey.Autograd)
    before = {key: kernels[key] for key in keys if key in kernels}

    def shapes(x: Tensor, state: Tensor, weights: Any, biases: bool, layers: int, *args: Any) -> tuple[Tensor, Tensor]:
        width, turned = state.shape[0] // layers * state.shape[2], args[-1]  # batch_first, of which it makes a view
        steps, rows = reversed(x.shape[:2]) if turned else x.shape[:2]
        out = x.new_empty(steps, rows, width)
        return out.transpose(0, 1) if turned else out, torch.empty_like(state)

    kernels.update(dict.fromkeys(before, shapes))
    try:
        yield
    finally:
        kernels.update(before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """torch tells about its drawing in warnings, logs and prints: none of it in the block."""
    before = logging.root.manager.disable
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)
        try:
            yield
        finally:
            logging.disable(before)
