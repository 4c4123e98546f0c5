"""Every model's ONNX graph against torch, domain by domain; what a graph holds, and where its weights lie."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from torch import Tensor
from worlds import Known, shake

from isthmus.batch import Batch, Output
from isthmus.checkpoint import save_weights
from isthmus.data import split
from isthmus.data.batches import query_batch, take_context
from isthmus.data.dataset import Dataset
from isthmus.data.encode import encode
from isthmus.data.events import read_events
from isthmus.errors import ConfigError
from isthmus.export.graphs import CONTEXT, Graph, write_graph
from isthmus.layers.domain import DomainBatchNorm, DomainLinear
from isthmus.layers.from_data import fill
from isthmus.model import Model, Retriever
from isthmus.models import available, get_model
from isthmus.run import build

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

DOMAINS, LENGTH, LATE = (1, 0, 2), 7, 10**6
QUICK = ("din", "item_knn", "lr", "mmoe", "pinet", "popularity", "sasrec", "star", "user_knn")
SAME = 1e-5  # of the size of the scores
SMALL = 4096  # bytes of a constant inside a graph
VARIANTS: list[tuple[str, dict[str, Any]]] = [
    ("adi", {"norm": "batch", "adaptation": "se", "fusion": "network_mul"}),
    ("adi", {"norm": "none", "adaptation": "linear", "fusion": "concat", "placement": "per_network", "shared": 2}),
    ("dacdr", {"queries": "sequence", "heads": 2}),
    ("dacdr", {"own_attention": ["medium"], "products": True, "numbers": True, "start": "level"}),
    ("dadin", {"start": "level", "first_order": False}),
    ("encoded", {"encoder": "sli_rec", "encoder_args": {"residual": True}}),
    ("item_knn", {"across": True, "decay": 0.1, "k": 5}),
    ("item_knn", {"popularity": -0.01}),
    ("man", {"encoder": "caser"}),
    ("man", {"encoder": "dien"}),
    ("man", {"encoder": "gru4rec"}),
    ("man", {"encoder": "sli_rec"}),
    ("man", {"encoder": "surge"}),
    ("man_dot", {"merged": True}),
    ("markov", {"across": True, "window": 5}),
    ("mmoe", {"tower_norm": True}),
    ("sasrec", {"merged": True, "heads": 2, "bias": False}),
    ("star", {"norm": False}),
    ("user_knn", {"k": 3}),
]


@dataclasses.dataclass
class Drawn:
    """A model and the graph of one of its domains, ready to run."""

    model: Model
    graph: Graph
    session: Any

    def differ(self, batch: Batch) -> float:
        """The largest difference of the graph to torch."""
        found, expected = self.run(batch), self.torch(batch)
        assert found.shape == expected.shape
        assert found.dtype == np.float32
        return float(np.abs(found - expected).max())

    def run(self, batch: Batch) -> np.ndarray:
        return self.session.run([self.graph.output], {name: field(batch, name).numpy() for name in self.graph.inputs})[0]

    @torch.no_grad()
    def torch(self, batch: Batch) -> np.ndarray:
        return (self.model.user_vector(batch) if isinstance(self.model, Retriever) else self.model(batch).logit).numpy()


def field(batch: Batch, name: str) -> Tensor:
    """What an input of a graph is in a batch."""
    return batch.context[name.removeprefix(CONTEXT)] if name.startswith(CONTEXT) else getattr(batch, name)


def made(name: str, dataset: Dataset, args: dict[str, Any] | None = None) -> Model:
    """A model every part of which has a say, no two domains the same."""
    model = build(name, dataset.schema, args or {}, seed=0)
    fill(model, dataset)
    with torch.random.fork_rng(), torch.no_grad():
        shake(model)
        for norm in (m for m in model.modules() if isinstance(m, DomainBatchNorm)):
            norm.running_mean += 0.2 * torch.randn_like(norm.running_mean)
            norm.running_var *= 0.5 + torch.rand_like(norm.running_var)
        for stage in model.stages():
            if stage.solve is not None:
                stage.solve(dataset, tuple(range(len(dataset.schema.domains))))
    return model.eval()


def draw(model: Model, domain: int, folder: Path) -> Drawn:
    weights = folder / "model.safetensors"
    if not weights.exists():
        save_weights(model, weights)
    graph = write_graph(model, domain, folder / f"{domain}.onnx", weights, length=LENGTH)
    return Drawn(model, graph, load(graph.path))


def load(path: Path) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def ask(dataset: Dataset, model: Model, domain: int, rows: int, candidates: int, seed: int = 0) -> Batch:
    """Rows of one domain: the first an unknown user who did nothing, then a short history, a full one, and what the data have.

    One row with one candidate is an unknown user's; with several, somebody's.
    """
    rng, schema = np.random.default_rng(seed), dataset.schema
    user, shown = rng.integers(1, schema.user.size, rows), dataset.catalogue(domain).astype(np.int64)
    item = rng.permuted(np.resize(shown, (rows, max(candidates, len(shown)))), axis=1)[:, :candidates]
    strange = [min(schema.item.trained, schema.item.size - 1), schema.item.size - 1, 1, 0][: max(0, candidates - 1)]  # untrained; 0 pads
    user[0] = 1 if rows > 1 or candidates == 1 else user[0]
    item[:, : len(strange)] = strange
    context = {name: take_context(column, np.arange(rows)) for name, column in dataset.part("test").context.items()}
    time, whose = np.full(rows, LATE), np.full(rows, domain)
    batch = query_batch(dataset, model.needs, user, whose, time, item, LENGTH, context=context)
    return vary(batch, shown[shown < schema.item.trained], len(schema.domains), rng) if rows > 3 else batch


def vary(batch: Batch, items: np.ndarray, domains: int, rng: np.random.Generator) -> Batch:
    """Row 0 without events, row 1 with its last one at most, row 2 with as many as there is room for."""
    changed = {}
    for f in dataclasses.fields(batch):
        old = getattr(batch, f.name)
        if isinstance(old, Tensor) and f.name.startswith(("history", "cross_", "merged_")):
            padding, kind = -1 if f.name.endswith("domain") else 0, f.name.split("_")[-1]
            changed[f.name] = new = old.clone()
            new[0] = padding
            new[1, :-1] = padding
            if new.shape[1]:
                new[2] = torch.from_numpy(full(kind, new.shape[1], items, domains, int(batch.domain[2]), f.name, rng)).to(new.dtype)
    return dataclasses.replace(batch, **changed)


def full(kind: str, length: int, items: np.ndarray, domains: int, own: int, name: str, rng: np.random.Generator) -> np.ndarray:
    """One row of a history's column."""
    if kind == "domain":
        others = [d for d in range(domains) if d != own or name.startswith("merged")]
        return rng.choice(others, length)
    if kind == "time":
        return np.sort(rng.integers(1, LATE, length))
    if kind == "label":
        return rng.integers(1, 6, length)
    return rng.choice(items, length) if kind == "history" else rng.integers(1, 3, length)


def same(drawn: Drawn, dataset: Dataset, domain: int) -> None:
    """The graph equals torch for many rows and for one, for many candidates and for one."""
    shapes = ((6, 9), (6, 1), (1, 9), (1, 1), (6, 60))
    batches = [ask(dataset, drawn.model, domain, rows, candidates, seed) for seed, (rows, candidates) in enumerate(shapes)]
    size = max(float(np.abs(drawn.torch(batch)).max()) for batch in batches)
    assert size > 1e-3 or domain != DOMAINS[0], "scores of nothing make the rest empty"
    for batch in batches:
        assert drawn.differ(batch) <= SAME * size


Make = Callable[[str, int], Drawn]


@pytest.fixture(scope="module")
def drawn(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """A model's graph of a domain, written once."""
    folder = functools.cache(lambda name: tmp_path_factory.mktemp(name))
    model = functools.cache(lambda name: made(name, dataset))
    return functools.cache(lambda name, domain: draw(model(name), domain, folder(name)))


def graphs() -> list[Any]:
    """Every model in every domain; those that differ most in what they are made of, in one, by default."""
    every = [(name, domain) for name in sorted(available()) for domain in DOMAINS]
    return [pytest.param(*one, marks=[] if one[0] in QUICK and one[1] == DOMAINS[0] else [pytest.mark.slow]) for one in every]


@pytest.mark.parametrize(("name", "domain"), graphs())
def test_a_graph_equals_torch(name: str, domain: int, drawn: Make, dataset: Dataset) -> None:
    found = drawn(name, domain)
    assert found.graph.output == ("vector" if issubclass(get_model(name), Retriever) else "score")
    assert {value.name for value in found.session.get_inputs()} == set(found.graph.inputs)
    same(found, dataset, domain)
    layers = {f"model.{key}.weight" for key, layer in found.model.named_modules() if isinstance(layer, DomainLinear)}
    assert found.graph.user == asks_who(found.model, dataset, domain)
    weights, constants = stored(found.graph.path)
    if name != "conet":  # whose networks read each other, all of them
        assert not layers & weights.keys(), "a domain's own layer, not those of all"
    assert max(constants.values(), default=0) <= SMALL


@torch.no_grad()
def asks_who(model: Model, dataset: Dataset, domain: int) -> bool:
    """Whether another user with the same past and the same context would be told something else."""
    batch = ask(dataset, model, domain, 6, 9)
    other = dataclasses.replace(batch, user=batch.user % (dataset.schema.user.trained - 1) + 1)
    given = [model.user_vector(b) if isinstance(model, Retriever) else model(b).logit for b in (batch, other)]
    return not torch.equal(*given)


def stored(path: Path) -> tuple[dict[str, dict[str, str]], dict[str, int]]:
    """Of a graph's weights where they lie, and of its other constants how large they are, by name."""
    tensors = onnx.load(path, load_external_data=False).graph.initializer
    outside = {t.name: {e.key: e.value for e in t.external_data} for t in tensors if t.external_data}
    return outside, {t.name: t.ByteSize() for t in tensors if not t.external_data}


@pytest.mark.slow
@pytest.mark.parametrize(("name", "args"), VARIANTS)
def test_settings_are_drawn_too(name: str, args: dict[str, Any], dataset: Dataset, tmp_path: Path) -> None:
    same(draw(made(name, dataset, args), 1, tmp_path), dataset, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in sorted(available()) if "rating" in get_model(name).tasks])
def test_ratings_are_read_too(name: str, known: Callable[[str], Known], tmp_path: Path) -> None:
    world = known("rating")
    same(draw(made(name, world.dataset), 1, tmp_path), world.dataset, 1)


@pytest.mark.slow
def test_many_values_of_a_context_field(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    columns = {name: rng.integers(0, 20, 300).astype(str) for name in ("user", "item")}
    values = [[f"c{c}" for c in rng.choice(8, rng.integers(0, 4), replace=False)] for _ in range(300)]
    frame = pl.DataFrame({**columns, "domain": rng.choice(["a", "b"], 300), "time": np.arange(300), "values": values})
    events = read_events(frame, **{n: n for n in ("user", "item", "domain", "time")}, context=("values",))
    dataset = encode(events, split.global_time(events), tmp_path / "data")
    found = draw(made("lr", dataset), 1, tmp_path)
    batch = ask(dataset, found.model, 1, 6, 9)
    for values in (torch.randint(0, 8, (6, n), generator=torch.Generator().manual_seed(n)) for n in (1, 2, 5)):
        assert found.differ(dataclasses.replace(batch, context={"values": values})) <= SAME


# ---------------------------------------------------------------- files


def test_the_graphs_of_two_domains_share_one_file(drawn: Make, dataset: Dataset, tmp_path: Path) -> None:
    here, there = drawn("mmoe", 1), drawn("mmoe", 0)
    batch = ask(dataset, here.model, 1, 6, 9)
    assert not np.allclose(here.run(batch), there.run(batch), atol=1e-3), "each has its own domain's part"
    weights = here.graph.path.parent / "model.safetensors"
    with open(weights, "rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
    end = 8 + size + max(entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__")
    assert end == weights.stat().st_size
    places = [stored(one.graph.path) for one in (here, there)]
    for outside, constants in places:
        assert outside
        for place in outside.values():
            assert place["location"] == "model.safetensors"
            assert 8 + size <= int(place["offset"]) < int(place["offset"]) + int(place["length"]) <= end
        assert sum(constants.values()) < 2 * SMALL
    gates = [{p["offset"] for p in outside.values()} for outside, _ in places]
    assert gates[0] & gates[1], "what the domains share"
    assert gates[0] - gates[1], "what they do not"
    assert max(one.graph.path.stat().st_size for one in (here, there)) < weights.stat().st_size / 5
    moved = tmp_path / "moved"
    moved.mkdir()
    for path in (here.graph.path, weights):
        (moved / path.name).write_bytes(path.read_bytes())
    found = Drawn(here.model, here.graph, load(moved / here.graph.path.name))
    assert np.array_equal(found.run(batch), here.run(batch))


def test_drawing_is_quiet_and_leaves_things_as_they_were(
    drawn: Make, dataset: Dataset, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    model = drawn("lr", 1).model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folder, kernels = drawn("lr", 1).graph.path.parent, dict(torch.ops.aten.gru.input.py_kernels)
    write_graph(model, 2, folder / "2.onnx", folder / "model.safetensors", length=LENGTH)
    assert capfd.readouterr() == ("", "")
    assert not [record for record in caplog.records if record.name != "torch.__trace"], "a channel of torch's own, which nobody reads"
    assert logging.root.manager.disable == logging.NOTSET
    assert model.training
    assert torch.ops.aten.gru.input.py_kernels == kernels
    assert all(torch.equal(value.nan_to_num(), before[key].nan_to_num()) for key, value in model.eval().state_dict().items())
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


# ---------------------------------------------------------------- errors


class Undecided(Model):
    """Does one thing or the other, as the data say."""

    def forward(self, batch: Batch) -> Output:
        """Asks for a number."""
        return Output(batch.item.float() * (2.0 if int(batch.user.max()) > 3 else 1.0))


def test_what_cannot_be_drawn_is_refused_in_one_line(dataset: Dataset, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    model = Undecided(dataset.schema).eval()
    save_weights(model, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="Undecided") as caught:
        write_graph(model, 0, tmp_path / "0.onnx", tmp_path / "model.safetensors", length=LENGTH)
    assert len(str(caught.value).splitlines()) <= 3
    assert len(caught.value.came) < 400
    assert not (tmp_path / "0.onnx").exists()
    assert capfd.readouterr() == ("", "")


def test_weights_elsewhere_and_missing_packages_are_refused(drawn: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = drawn("lr", 1)
    with pytest.raises(ConfigError, match="beside the graph"):
        write_graph(made.model, 1, tmp_path / "1.onnx", made.graph.path.parent / "model.safetensors", length=LENGTH)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: None if name == "onnxscript" else find(name, *args))
    with pytest.raises(ConfigError, match=r"onnxscript.*not installed") as caught:
        write_graph(made.model, 1, tmp_path / "1.onnx", tmp_path / "model.safetensors", length=LENGTH)
    assert caught.value.do == "pip install 'isthmus[export]'"


# ---------------------------------------------------------------- operators


class Operators(torch.nn.Module):
    """Every operator that has a translation of ours, and the ways in which it is used."""

    def forward(self, line: Tensor, wanted: Tensor, often: Tensor, table: Tensor, rows: Tensor, starts: Tensor) -> list[Tensor]:
        """Their results."""
        bag = torch.nn.functional.embedding_bag
        fixed = torch.tensor([1, 4, 4, 9, 12])
        skew = table[:4, :4] - table[:4, :4].t()
        one = torch.eye(4)
        return [
            torch.searchsorted(fixed, wanted),
            torch.searchsorted(fixed, wanted, right=True),
            torch.searchsorted(line, wanted),
            torch.searchsorted(line, wanted, side="right"),
            torch.arange(often.shape[0]).repeat_interleave(often),
            torch.bincount(wanted.flatten()),
            torch.bincount(wanted.flatten(), minlength=wanted.shape[0] * 7),
            bag(rows, table, mode="sum", padding_idx=0),
            bag(rows, table, mode="mean", padding_idx=0),
            bag(rows, table, mode="sum", padding_idx=0, per_sample_weights=rows * 0.5),
            bag(rows.flatten(), table, starts, mode="mean", padding_idx=0),
            torch.linalg.solve(one + skew, one - skew),
            *wanted.sort(dim=1, stable=True),
            *wanted.flatten().float().sort(stable=True, descending=True),
            (wanted > 7).to(torch.int8).argsort(dim=0, stable=True),
        ]


def test_operators_of_our_own(tmp_path: Path) -> None:
    from isthmus.export.graphs import _quiet
    from isthmus.export.operators import table

    def given(n: int) -> tuple[Tensor, ...]:
        g = torch.Generator().manual_seed(n)
        rows = torch.randint(0, 9, (n, 6), generator=g)
        rows[0] = 0  # a bag of nothing but padding
        starts = torch.sort(torch.randint(1, rows.numel(), (n,), generator=g)).values
        starts[0] = 0
        starts[-1] = starts[-2]  # an empty bag
        line = torch.sort(torch.randint(0, 14, (n,), generator=g)).values
        wanted = torch.randint(0, 15, (n, 3), generator=g)
        return line, wanted, torch.randint(0, 4, (n,), generator=g), torch.randn(9, 5, generator=g), rows, starts

    size = torch.export.Dim("n", min=2, max=1000)
    shapes = [{} if name == "table" else {0: size} for name in ("line", "wanted", "often", "table", "rows", "starts")]
    with _quiet(), torch.no_grad():
        program = torch.export.export(Operators().eval(), given(4), dynamic_shapes=tuple(shapes), strict=False)
        found = torch.onnx.export(program, custom_translation_table=table(), dynamo=True, verbose=False)
    assert found is not None
    found.save(tmp_path / "o.onnx")
    session = load(tmp_path / "o.onnx")
    for n in (4, 2, 31):
        values = given(n)
        out = session.run(None, {i.name: v.numpy() for i, v in zip(session.get_inputs(), values, strict=True)})
        for a, b in zip(out, Operators()(*values), strict=True):
            np.testing.assert_allclose(a, b.numpy(), rtol=1e-5, atol=1e-6)
            assert math.prod(a.shape) == b.numel()
