"""``Batcher``: questions that arrive while others are being answered are answered together."""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Executor

from isthmus.errors import IsthmusError
from isthmus.serve.asks import Answer, Ask
from isthmus.serve.engine import Engine

Waiting = tuple[Ask, "asyncio.Future[Answer]"]


class Batcher:
    """Questions to one engine, by domain.

    While nothing runs, a question starts at once; those that come in meanwhile wait for it, and go together.  So the window is as
    long as an answer takes, and an idle service loses no time.

    Args:
        engine: answers.
        executor: where it does so.
        most: questions answered together, at most.
        workers: batches of a domain that run side by side.
        saw: gets the size of each batch.
    """

    def __init__(self, engine: Engine, executor: Executor, *, most: int = 32, workers: int = 1, saw: Callable[[int], None]) -> None:
        self.engine, self.executor, self.most, self.workers, self.saw = engine, executor, most, workers, saw
        self._waiting: defaultdict[str, deque[Waiting]] = defaultdict(deque)
        self._running: defaultdict[str, int] = defaultdict(int)
        self._tasks: set[asyncio.Task[None]] = set()

    async def recommend(self, ask: Ask, domain: str) -> Answer:
        """One question's answer.

        Raises:
            ConfigError: as the engine's.
        """
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting[domain].append((ask, future))
        if self._running[domain] < self.workers:
            self._running[domain] += 1
            task = asyncio.create_task(self._drain(domain))
            self._tasks.add(task)  # the loop itself keeps no hold of it
            task.add_done_callback(self._tasks.discard)
        return await future

    async def _drain(self, domain: str) -> None:
        """Answers until nobody waits."""
        waiting, loop = self._waiting[domain], asyncio.get_running_loop()
        try:
            while waiting:
                some = [waiting.popleft() for _ in range(min(self.most, len(waiting)))]
                some = [(ask, future) for ask, future in some if not future.done()]  # who hung up is not answered
                if not some:
                    continue
                self.saw(len(some))
                found = await loop.run_in_executor(self.executor, self._answers, [ask for ask, _ in some], domain)
                for (_, future), answer in zip(some, found, strict=True):
                    if future.done():
                        continue
                    if isinstance(answer, BaseException):
                        future.set_exception(answer)
                    else:
                        future.set_result(answer)
        finally:
            self._running[domain] -= 1

    def _answers(self, asks: list[Ask], domain: str) -> list[Answer | BaseException]:
        """Together, or where one of them cannot be answered each by itself."""
        try:
            return list(self.engine.recommend(asks, domain))
        except BaseException as error:
            if len(asks) == 1:
                return [error]
            if not isinstance(error, IsthmusError):
                return [error for _ in asks]
        return [self._answers([ask], domain)[0] for ask in asks]
