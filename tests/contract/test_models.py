"""The contract that every model keeps, tried on every model found in the folder."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pytest
import torch
from torch import Tensor
from worlds import shake

from isthmus.batch import Batch, Needs
from isthmus.checkpoint import load_tensors, load_weights, map_weights, save_weights
from isthmus.data.batches import Plan, batches
from isthmus.data.dataset import Dataset
from isthmus.errors import ConfigError
from isthmus.fit import fit
from isthmus.layers.domain import DomainLinear
from isthmus.layers.from_data import fill
from isthmus.model import Model, Retriever, Sequential
from isthmus.models import available, describe, get_model
from isthmus.run import build
from isthmus.task import TASKS, default_task

NAMES = sorted(available())
# What these learn is the order of events, which only one world has; all others train for the next item as for retrieval.
ORDERED = [*(name for name in NAMES if issubclass(get_model(name), Sequential)), "man", "dien", "surge", "dasl", "pinet", "markov"]
TASKED = [(name, task) for name in NAMES for task in get_model(name).tasks if task != ("retrieval" if name in ORDERED else "next_item")]
# Networks over histories take the longest: those that learn at every place of a sequence do so in every run of the tests, row by row and
# for rows of labels in the slow ones.
SLOW = [
    name in ORDERED and not get_model(name).shallow and not (task == "next_item" and issubclass(get_model(name), Sequential))
    for name, task in TASKED
]
JOBS = [pytest.param(*one, marks=[pytest.mark.slow] * slow) for one, slow in zip(TASKED, SLOW, strict=True)]
EVERYTHING = Needs(
    history=True, cross_history=True, merged_history=True, behaviour=True, history_time=True, history_label=True, context=True
)
READS = {  # what a model that does not declare the need must leave alone
    "history": ("history", "history_time", "history_behaviour", "history_label"),
    "cross_history": ("cross_history", "cross_domain", "cross_time", "cross_behaviour", "cross_label"),
    "merged_history": ("merged_history", "merged_domain"),
    "behaviour": ("history_behaviour", "cross_behaviour"),
    "history_time": ("history_time", "cross_time", "time"),
    "history_label": ("history_label", "cross_label"),
    "context": ("context",),
}
PADDED = {"cross_domain": -1, "merged_domain": -1}  # what fills histories up; 0 elsewhere
ANSWERS = ("label", "weight", "log_q")
# Least share of the known answer, by ``shallow``.  Knowing how good items are, but no tastes, is worth 0.14 to 0.25 here
# (popularity) and an untrained network at most 0.1: whoever passes 0.4 has learnt who likes what.
LEARNT = {False: 0.4, True: 0.1}


class Known(Protocol):
    """See ``worlds.py``."""

    dataset: Dataset
    task: Any
    how: Any

    def learnt(self, model: Model) -> float: ...


# ---------------------------------------------------------------- batches and models


def draw(dataset: Dataset, needs: Needs, size: int = 48, epoch: int = 0) -> Batch:
    """A shuffled training batch with all domains, four candidates a row."""
    stream = batches(dataset, "train", needs, Plan(batch_size=size, negatives=3, history_length=6), epoch=epoch, prefetch=0)
    batch = next(stream)
    stream.close()
    assert min(np.diff(batch.offsets)) > 1, "the tests want rows of every domain"
    return batch


def take(batch: Batch, rows: Sequence[int] | Tensor) -> Batch:
    """Chosen rows, in an order that keeps domains ascending."""
    index = torch.as_tensor(rows, dtype=torch.int64)
    domain = batch.domain[index]
    offsets = torch.searchsorted(domain, torch.arange(len(batch.offsets))).tolist()

    def cut(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: cut(v) for k, v in value.items()}
        return value[index] if isinstance(value, Tensor) else value

    fields = {f.name: cut(getattr(batch, f.name)) for f in dataclasses.fields(batch)}
    return Batch(**{**fields, "offsets": tuple(offsets)})


def histories(batch: Batch) -> dict[str, Tensor]:
    """All (B, L) fields that the batch has."""
    fields = [f.name for f in dataclasses.fields(batch) if "history" in f.name or f.name.startswith(("cross_", "merged_"))]
    return {field: value for field in fields if (value := getattr(batch, field)) is not None}


def shaken(name: str, dataset: Dataset) -> Model:
    """A model whose weights are no longer where they start, so that every part of it has a say."""
    model = build(name, dataset.schema, seed=0)
    fill(model, dataset)
    with torch.random.fork_rng(), torch.no_grad():
        shake(model)
        for stage in model.stages():
            if stage.solve is not None:
                stage.solve(dataset, tuple(range(len(dataset.schema.domains))))
        for epoch in range(3):
            model.train()(draw(dataset, model.needs, epoch=epoch))  # running statistics move
    return model.eval()


@pytest.fixture(scope="module")
def ready(dataset: Dataset) -> Callable[[str], tuple[Model, Batch]]:
    """A shaken model by name, and a batch for it; made once, never changed."""

    @functools.cache
    def make(name: str) -> tuple[Model, Batch]:
        model = shaken(name, dataset)
        return model, draw(dataset, model.needs)

    return make


@torch.no_grad()
def logits(model: Model, batch: Batch) -> Tensor:
    return model(batch).logit


def same(found: Tensor, expected: Tensor) -> None:
    """Equal but for rounding, on the scale on which the scores vary."""
    scale = float(expected.std()) if expected.numel() > 1 else float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * scale + 1e-6)


Ready = Callable[[str], tuple[Model, Batch]]
every_model = pytest.mark.parametrize("name", NAMES)

# ---------------------------------------------------------------- scores


@every_model
def test_scores_have_the_shape_of_the_items_and_say_something(name: str, ready: Ready) -> None:
    model, batch = ready(name)
    found = logits(model, batch)
    assert found.shape == batch.item.shape
    assert found.dtype == torch.float32
    assert found.isfinite().all()
    assert found.std() > 1e-3, "scores that do not differ make all other tests empty"


@every_model
def test_a_row_alone_scores_as_in_company(name: str, ready: Ready) -> None:
    model, batch = ready(name)
    together = logits(model, batch)
    alone = torch.cat([logits(model, take(batch, [row])) for row in range(len(batch))])
    same(alone, together)


@every_model
def test_the_order_of_rows_does_not_matter(name: str, ready: Ready) -> None:
    model, batch = ready(name)
    order = torch.cat([a + torch.randperm(b - a, generator=torch.Generator().manual_seed(a)) for a, b in itertools.pairwise(batch.offsets)])
    same(logits(model, take(batch, order)), logits(model, batch)[order])


@every_model
def test_candidates_do_not_influence_each_other(name: str, ready: Ready) -> None:
    model, batch = ready(name)
    together = logits(model, batch)
    for columns in ([0], [2], [3, 1, 0], [1, 1]):
        fewer = dataclasses.replace(batch, item=batch.item[:, columns], label=None, log_q=None)
        same(logits(model, fewer), together[:, columns])


@every_model
def test_empty_histories_and_unknown_ids_have_finite_scores(name: str, ready: Ready) -> None:
    model, batch = ready(name)
    user, item = model.schema.user, model.schema.item
    assert user.trained < user.size
    assert item.trained < item.size, "the data have ids that training never saw"
    empty = {key: torch.full_like(value, PADDED.get(key, 0)) for key, value in histories(batch).items()}
    for codes_of_user in (1, user.trained, user.size - 1):
        for codes_of_item in (0, 1, item.trained, item.size - 1):  # 0 pads candidate lists
            strange = {"user": torch.full_like(batch.user, codes_of_user), "item": torch.full_like(batch.item, codes_of_item)}
            assert logits(model, dataclasses.replace(batch, **strange)).isfinite().all()
            assert logits(model, dataclasses.replace(batch, **strange, **empty)).isfinite().all()
    if model.needs.whole_history:  # as wide as the longest one here, which may be nothing
        none = {k: v[:, :0] for k, v in empty.items()}
        assert logits(model, dataclasses.replace(batch, **none)).isfinite().all()


@every_model
def test_padding_in_histories_does_not_matter(name: str, ready: Ready) -> None:
    model, batch = ready(name)
    wider = {key: torch.nn.functional.pad(value, (3, 0), value=PADDED.get(key, 0)) for key, value in histories(batch).items()}
    same(logits(model, dataclasses.replace(batch, **wider)), logits(model, batch))


@every_model
def test_scoring_needs_no_answers_and_changes_nothing(name: str, ready: Ready) -> None:
    model, batch = ready(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    first = model(dataclasses.replace(batch, label=None, weight=None, log_q=None))
    assert first.extra == {}, "named losses are for training"
    assert torch.equal(first.logit.detach(), logits(model, batch))
    assert all(torch.equal(v.nan_to_num(), before[k].nan_to_num()) for k, v in model.state_dict().items())


@pytest.mark.parametrize("name", [n for n in NAMES if issubclass(get_model(n), Retriever)])
def test_a_retrievers_score_is_the_dot_product_of_its_vectors(name: str, ready: Ready) -> None:
    model, batch = ready(name)
    assert isinstance(model, Retriever)
    with torch.no_grad():
        user = model.user_vector(batch)
        item = model.item_vector(batch.item, batch.domain[:, None].expand_as(batch.item))
        one = model.item_vector(batch.item[:, 0], batch.domain)
    torch.testing.assert_close(one, item[:, 0])
    same(torch.einsum("bd,bcd->bc", user, item), logits(model, batch))


@every_model
def test_saved_and_loaded_it_gives_the_same_bits(name: str, ready: Ready, tmp_path: Path) -> None:
    model, batch = ready(name)
    save_weights(model, tmp_path / "model.safetensors")
    copied, mapped = (build(name, model.schema, model.args, seed=7).eval() for _ in range(2))
    load_weights(copied, load_tensors(tmp_path / "model.safetensors"))
    map_weights(mapped, tmp_path / "model.safetensors")
    for other in (copied, mapped):
        assert torch.equal(logits(other, batch), logits(model, batch))
    before, after = ([n for n, _ in m.named_parameters()] for m in (model, mapped))
    assert before == after  # tied ones are still one


# ---------------------------------------------------------------- training


@every_model
def test_every_weight_gets_a_gradient_or_is_solved(name: str, dataset: Dataset) -> None:
    # A network of a few units may start with all of a layer's units off, or all on before a softmax: from another start it does not.
    assert not set.intersection(*(unmoved(name, dataset, seed) for seed in range(3)))


def unmoved(name: str, dataset: Dataset, seed: int) -> set[str]:
    """The weights that neither a gradient nor a closed form reaches."""
    torch.manual_seed(seed)
    model = build(name, dataset.schema, seed=seed)
    fill(model, dataset)
    task = default_task(dataset.schema, model.tasks)
    missing, solved = {part for name, p in model.named_parameters() for part in parts_of(model, name, p)}, False
    start = {k: v.clone() for k, v in model.state_dict().items()}
    for stage in model.stages():
        if stage.solve is not None:
            stage.solve(dataset, tuple(range(len(dataset.schema.domains))) if stage.domains is None else stage.domains)
            solved = True
            continue
        wanted = {id(p) for p in (model.parameters() if stage.weights is None else stage.weights)}
        for epoch in range(4):
            batch = draw(dataset, model.needs, epoch=epoch)
            if stage.domains is not None:
                batch = take(batch, torch.isin(batch.domain, torch.tensor(stage.domains)).nonzero().flatten())
            model.train().zero_grad()
            loss = torch.stack(list(stage.terms(model, batch, task.loss).values())).sum()
            loss.backward()
            for name_of, p in model.named_parameters():
                if id(p) in wanted and p.grad is not None:
                    missing -= {part for part, grad in parts_of(model, name_of, p.grad).items() if moved(grad)}
                    with torch.no_grad():  # a step: a gate that starts shut lets gradients through only once it has moved
                        p -= 0.1 * p.grad
    if solved:
        same_names = start.keys() == model.state_dict().keys()
        assert not same_names or any(not equal(v, start[k]) for k, v in model.state_dict().items()), "the closed form filled nothing"
        missing = {part for part in missing if equal(model.state_dict()[part.split("[")[0]], start[part.split("[")[0]])}
    return missing


@every_model
def test_half_precision_gives_the_same_losses_roughly(name: str, dataset: Dataset) -> None:
    model = build(name, dataset.schema, seed=0)
    fill(model, dataset)
    task = default_task(dataset.schema, model.tasks)
    for stage in model.stages():
        if stage.solve is not None:
            continue
        batch = draw(dataset, model.needs, epoch=0)
        if stage.domains is not None:
            batch = take(batch, torch.isin(batch.domain, torch.tensor(stage.domains)).nonzero().flatten())
        model.train()
        found = []
        for half in (False, True):
            torch.manual_seed(1)
            with torch.autocast("cpu", torch.bfloat16, enabled=half):
                found.append(stage.terms(model, batch, task.loss))
        for term, value in found[0].items():
            assert found[1][term].dtype == torch.float32
            torch.testing.assert_close(found[1][term], value, rtol=0.02, atol=0.02)
        torch.stack(list(found[1].values())).sum().backward()
        assert all(p.grad.to_dense().isfinite().all() for p in model.parameters() if p.grad is not None)


def parts_of(model: Model, name: str, value: Tensor) -> dict[str, Tensor]:
    """A weight by name; one that is stacked by domain, each domain's part of it."""
    if isinstance(model.get_submodule(name.rpartition(".")[0]), DomainLinear):
        return {f"{name}[{d}]": part for d, part in enumerate(value)}
    return {name: value}


def moved(gradient: Tensor) -> bool:
    dense = gradient.to_dense()
    assert dense.isfinite().all()
    return bool((dense != 0).any())


def equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a.nan_to_num(), b.nan_to_num())


@pytest.mark.parametrize(("name", "task"), JOBS)
def test_learns_a_world_whose_answer_is_known(name: str, task: str, known: Callable[[str], Known]) -> None:
    world = known(task)
    model = build(name, world.dataset.schema, seed=0)
    # what learns at every place of a sequence needs fewer epochs than what learns row by row
    how = dataclasses.replace(world.how, epochs=8) if task == "next_item" and isinstance(model, Sequential) else world.how
    run = fit(model, world.dataset, world.task, how)
    assert world.learnt(run.model) > LEARNT[model.shallow]


# ---------------------------------------------------------------- declarations


class Spy(Batch):
    """A batch that notes what is read from it."""

    seen: set[str]

    def __getattribute__(self, name: str) -> Any:
        type(self).seen.add(name)
        return super().__getattribute__(name)


@every_model
def test_needs_are_exact(name: str, ready: Ready, dataset: Dataset) -> None:
    model, _ = ready(name)
    full = draw(dataset, dataclasses.replace(EVERYTHING, whole_history=model.needs.whole_history))
    Spy.seen = set()
    spy = Spy(**{f.name: getattr(full, f.name) for f in dataclasses.fields(full)})
    Spy.seen.clear()
    logits(model, spy)
    for need, fields in READS.items():
        declared = getattr(model.needs, need)
        if declared:
            assert Spy.seen & set(fields), f"{need} is asked for and never read"
        else:
            read = Spy.seen & set(fields)
            assert not read, f"{sorted(read)} read without asking for {need}"
    assert not Spy.seen & set(ANSWERS), "scoring must not see the answers"
    if model.needs.whole_history:
        assert model.needs.history or model.needs.cross_history


@every_model
def test_declares_itself(name: str) -> None:
    model = get_model(name)
    module = inspect.getmodule(model)
    assert module is not None
    assert module.__doc__
    assert model.__doc__
    assert not inspect.isabstract(model)
    assert not model.__subclasses__(), "a model is final"
    assert 10 < len(model.paper) < 120
    assert "\n" not in model.paper
    assert model.tasks
    assert set(model.tasks) <= set(TASKS)
    first, *others = inspect.signature(model).parameters.values()
    assert first.name == "schema"
    assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in others)
    described = {line.strip().split(":")[0] for line in model.__doc__.splitlines()}
    documented = {part.strip() for names in described for part in names.split(",")}
    assert {p.name for p in others} <= documented, "every setting has a line in the docstring"
    facts = describe(name)
    assert facts["name"] == name
    assert facts["paper"] == model.paper
    assert facts["tasks"] == list(model.tasks)
    assert facts["needs"] == [f.name for f in dataclasses.fields(Needs) if getattr(model.needs, f.name)]


def test_names_are_the_files_and_listing_them_imports_no_torch() -> None:
    folder = Path(inspect.getfile(get_model)).parent
    assert {f.stem for f in folder.glob("[!_]*.py")} == set(NAMES)
    code = "import sys; from isthmus.models import available; assert len(available()) > 5; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean 'mmoe'"):
        get_model("mmoee")
