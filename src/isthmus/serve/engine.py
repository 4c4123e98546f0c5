"""``Engine``: questions about users -> ranked items, from a bundle and the live histories; no network here."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from isthmus.errors import ConfigError
from isthmus.index import Index
from isthmus.layers.topk import first
from isthmus.schema import FIRST, PADDING, UNKNOWN
from isthmus.segments import places
from isthmus.serve.asks import Answer, Ask, Ranked, Reason
from isthmus.serve.bundle import Bundle, Catalogue, Stage
from isthmus.serve.feeds import feeds
from isthmus.serve.histories import Histories
from isthmus.serve.ids import Id
from isthmus.serve.users import Known, Users

PAIRS = 1 << 16  # most (row, candidate) pairs in one call of a graph
FETCH = 500  # items that a retriever hands to the model that ranks them
REASONS = 3  # events named as the nearest to an item


class Engine:
    """Answers from one bundle; safe to use from several threads.

    Args:
        bundle: what to answer from.
        histories: live events; None: those of the bundle alone.
        clock: seconds since 1970.
    """

    def __init__(self, bundle: Bundle, histories: Histories | None = None, clock: Callable[[], float] = time.time) -> None:
        self.bundle, self.users = bundle, Users(bundle, histories, clock)

    def recommend(self, asks: Sequence[Ask], domain: str) -> list[Answer]:
        """The best items of the domain's catalogue, or of the candidates given, for each question.

        Raises:
            ConfigError: no such domain, field, category field or behaviour, or a value of the wrong kind; it names which.
        """
        d = self.bundle.domain(domain)
        known, stale = self.users.known(asks, d)
        answers: list[Answer | None] = [None] * len(known)
        lists = [n for n, one in enumerate(known) if one.ask.candidates is not None]
        counted = [n for n, one in enumerate(known) if self.bundle.personal and one.ask.candidates is None and one.basis == "popular"]
        rest = sorted({*range(len(known))} - {*lists, *counted})
        for n in counted:
            answers[n] = self._popular(known[n], d)
        for some, found in ((lists, self._lists), (rest, self._whole)):
            if some:
                for n, answer in zip(some, found([known[n] for n in some], d), strict=True):
                    answers[n] = answer
        return [replace(answer, stale=stale) for answer in answers if answer is not None]

    def similar(self, item: Id, domain: str, k: int = 10) -> tuple[Ranked, ...]:
        """The items of a domain whose vectors point the same way, with their cosines.

        Raises:
            ConfigError: no such domain, an item that its catalogue lacks, or a bundle without a retriever.
        """
        d = self.bundle.domain(domain)
        index = self._index(d)
        if index is None:
            raise ConfigError(
                "similar items of a bundle without a retriever", "item vectors", "export a retriever, alone or as first stage"
            )
        code = self.bundle.items.codes([item])
        place, there = places(index.item, code)
        if not there[0]:
            raise ConfigError(f"item {item!r}", f"an item of domain {domain!r}", "ask for one that its catalogue shows")
        cosine = F.cosine_similarity(index.at(slice(None)), index.at(torch.from_numpy(place))).numpy()
        cosine[place[0]] = -np.inf
        best = _first(cosine, k)
        return self._ranked(index.item[best], cosine[best])

    def _popular(self, one: Known, d: int) -> Answer:
        """The items most often chosen."""
        catalogue: Catalogue = self.bundle.catalogues[d]
        order = catalogue.popular
        if one.allowed is not None:
            mask = np.zeros(len(order), bool)
            mask[one.allowed] = True
            order = order[mask[order]]
        order = order[: one.ask.k + len(one.hidden)]
        order = order[~np.isin(catalogue.item[order], one.hidden)][: one.ask.k]
        return Answer(self._ranked(catalogue.item[order], catalogue.count[order]), "popular", one.unknown)

    def _lists(self, known: list[Known], d: int) -> list[Answer]:
        """Given candidates, each list in order of its scores."""
        stage, index = self.bundle.stages[-1], self._index(d) if self.bundle.stages[-1].indexes is not None else None
        codes, missing = [], []
        for one in known:
            assert one.ask.candidates is not None
            ids = list(dict.fromkeys(one.ask.candidates))
            code = self.bundle.items.codes(ids)
            there = code != UNKNOWN if index is None else places(index.item, code)[1]
            there &= ~np.isin(code, self.bundle.items.codes(one.ask.exclude))
            codes.append(code[there])
            missing.append((*one.unknown, *(name for name, ok in zip(ids, there, strict=True) if not ok and name not in one.ask.exclude)))
        found = self._in_order(stage, known, d, codes)
        return [
            Answer(self._ranked(code[:k], score[:k], self._why(one, d, code[:k])), one.basis, names)
            for one, (code, score), names in zip(known, found, missing, strict=True)
            for k in [one.ask.k]
        ]

    def _whole(self, known: list[Known], d: int) -> list[Answer]:
        """The best of the catalogue: found by the first stage, ranked by the last."""
        finder, last = self.bundle.stages[0], self.bundle.stages[-1]
        if finder.indexes is None:
            found = [self._ranked_catalogue(finder, one, d) for one in known]
        else:
            found = self._found(finder, known, d, FETCH if finder is not last else 0)
            if finder is not last:
                found = self._in_order(last, known, d, [code for code, _ in found])
        return [
            Answer(self._ranked(code[:k], score[:k], self._why(one, d, code[:k])), one.basis, one.unknown)
            for one, (code, score) in zip(known, found, strict=True)
            for k in [one.ask.k]
        ]

    def _found(self, stage: Stage, known: list[Known], d: int, least: int) -> list[tuple[np.ndarray, np.ndarray]]:
        """Codes and scores of each question's best items, ``least`` or as many as it wants."""
        assert stage.indexes is not None
        index, k = stage.indexes[d], max(least, *(one.ask.k for one in known))
        queries = torch.from_numpy(stage.run(feeds(stage.reads, self.bundle.schema, [one.row for one in known], d), d))
        free = [n for n, one in enumerate(known) if one.allowed is None]
        out: list[tuple[np.ndarray, np.ndarray]] = [(np.zeros(0, np.int64), np.zeros(0, np.float32))] * len(known)
        if free:
            hide = (np.repeat(np.arange(len(free)), [len(known[n].hidden) for n in free]), np.concatenate([known[n].hidden for n in free]))
            wide = index if index.searcher is None or k <= index.k else replace(index, kind="exact", searcher=None)
            item, score = wide.search(queries[free], k, hide)
            for n, codes, scores in zip(free, item, score, strict=True):
                out[n] = (codes[codes > PADDING], scores[codes > PADDING])
        for n, one in enumerate(known):
            if one.allowed is not None:
                own = one.allowed[~np.isin(index.item[one.allowed], one.hidden)]
                score = (index.at(torch.from_numpy(own)) @ queries[n]).numpy()
                best = _first(score, k)
                out[n] = (index.item[own[best]], score[best])
        return out

    def _in_order(self, stage: Stage, known: list[Known], d: int, codes: list[np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Each question's candidates and their scores, best first."""
        item = np.zeros((len(known), max(1, *(len(code) for code in codes))), np.int64)
        for n, code in enumerate(codes):
            item[n, : len(code)] = code
        out = []
        for code, own in zip(codes, self._scores(stage, known, d, item), strict=True):
            best = np.argsort(-own[: len(code)], kind="stable")
            out.append((code[best], own[best]))
        return out

    def _ranked_catalogue(self, stage: Stage, one: Known, d: int) -> tuple[np.ndarray, np.ndarray]:
        """The catalogue as a model without vectors scores it."""
        item = self.bundle.catalogues[d].item
        item = item if one.allowed is None else item[one.allowed]
        item = item[~np.isin(item, one.hidden)]
        parts = [self._scores(stage, [one], d, some[None])[0] for some in np.split(item, np.arange(PAIRS, len(item), PAIRS)) if len(some)]
        score = np.concatenate([np.zeros(0, np.float32), *parts])
        best = _first(score, one.ask.k)
        return item[best], score[best]

    def _scores(self, stage: Stage, known: list[Known], d: int, item: np.ndarray) -> np.ndarray:
        """(B, C) scores of candidates, those of padding meaningless."""
        arrays = feeds(stage.reads, self.bundle.schema, [one.row for one in known], d)
        if stage.indexes is not None:
            index = stage.indexes[d]
            user = torch.from_numpy(stage.run(arrays, d))
            return torch.einsum("bd,bcd->bc", user, _vectors(index, item)).numpy()
        rows = max(1, PAIRS // item.shape[1])
        cuts = [slice(start, start + rows) for start in range(0, len(known), rows)]
        return np.concatenate([stage.run({name: values[cut] for name, values in arrays.items()}, d, item[cut]) for cut in cuts])

    def _index(self, d: int) -> Index | None:
        """The item vectors of a domain."""
        indexes = self.bundle.stages[0].indexes
        return None if indexes is None else indexes[d]

    def _why(self, one: Known, d: int, code: np.ndarray) -> list[tuple[Reason, ...]]:
        """For each item the user's events in the domain nearest to it, where asked for and there are vectors."""
        index = self._index(d)
        past = np.unique(one.row.past.item[one.row.past.domain == d])
        if not one.ask.why or index is None or not len(code):
            return [() for _ in code]
        past = past[places(index.item, past)[1]]
        if not len(past):
            return [() for _ in code]
        cosine = F.normalize(_vectors(index, code), dim=1) @ F.normalize(_vectors(index, past), dim=1).T
        order = cosine.argsort(dim=1, descending=True)[:, :REASONS].numpy()
        names, titles, value = self.bundle.items.names(past), self._titles(past), cosine.numpy()
        return [tuple(Reason(names[c], float(value[n, c]), titles[c]) for c in own) for n, own in enumerate(order)]

    def _ranked(self, code: np.ndarray, score: np.ndarray, why: Sequence[tuple[Reason, ...]] | None = None) -> tuple[Ranked, ...]:
        names, reasons = self.bundle.items.names(code), why or [()] * len(code)
        return tuple(Ranked(*one) for one in zip(names, score.tolist(), self._titles(code), reasons, strict=True))

    def _titles(self, code: np.ndarray) -> list[str | None]:
        return [None] * len(code) if self.bundle.titles is None else self.bundle.titles.gather(code - FIRST).to_list()


def load(path: str | Path, histories: Histories | None = None) -> Engine:
    """Opens a bundle for answers in this process.

    ::

        engine = isthmus.load("bundle/")
        engine.recommend([Ask(user="u1", k=5)], "small")

    Args:
        path: its folder.
        histories: live events; None: those of the bundle alone.

    Raises:
        SourceError: no bundle, one of another version, or a file that is missing or changed.
        ConfigError: ONNX Runtime is not installed, or faiss where an index needs it.
    """
    return Engine(Bundle.load(path), histories)


def _vectors(index: Index, item: np.ndarray) -> torch.Tensor:
    """Codes (...) -> (..., d); of codes that the index lacks any."""
    place, _ = places(index.item, item)
    return index.at(torch.from_numpy(place.clip(max=len(index) - 1)))


def _first(score: np.ndarray, k: int) -> np.ndarray:
    """Places of the k largest, best first, equal ones in order of their places; -inf never."""
    value, column = first(torch.from_numpy(score)[None], min(k, len(score)))
    return column[0][value[0] > -torch.inf].numpy()
