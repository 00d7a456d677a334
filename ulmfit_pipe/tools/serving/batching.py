"""Texts of many requests predicted together, by one thread, from a queue that does not grow without bound."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

Row = dict[str, Any]
Answer = Callable[[Sequence[str]], list[Row]]


class QueueFullError(Exception):
    """As many texts wait as may; the client should ask again later."""


class StoppingError(Exception):
    """The server is being stopped and takes no more requests."""


@dataclass
class _Waiting:
    texts: Sequence[str]
    answer: "asyncio.Future[list[Row]]"


class Batcher:
    """Collects the texts of concurrent requests into batches; each request gets the rows of its own texts.

    A batch is what waits when the one before it is done, up to `most_texts`: alone, a request waits for nothing.

    Args:
        predict: Returns a row per text. Called by one thread, one call at a time.
        most_texts: Texts of a batch; a request with more is a batch of its own.
        most_waiting: Texts that may wait or be computed at once; a request that is too much raises `QueueFullError`.
        seen: Receives the number of texts of each batch.
    """

    def __init__(
        self, predict: Answer, *, most_texts: int, most_waiting: int, seen: Callable[[int], None] = lambda texts: None
    ) -> None:
        self._predict, self._seen = predict, seen
        self._most_texts, self._most_waiting = most_texts, most_waiting
        self._queue: asyncio.Queue[_Waiting | None] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="predict")
        self._worker: asyncio.Task[None] | None = None
        self._stopping = False
        self.waiting = 0  # texts not answered yet

    @property
    def ready(self) -> bool:
        """Whether another text would be taken."""
        return self._worker is not None and not self._stopping and self.waiting < self._most_waiting

    def start(self) -> None:
        """Begin to answer; called with the event loop running."""
        self._worker = asyncio.create_task(self._work())

    async def stop(self) -> None:
        """Answer what waits, then end."""
        self._stopping = True
        await self._queue.put(None)
        if self._worker is not None:
            await self._worker
        self._thread.shutdown()

    async def submit(self, texts: Sequence[str]) -> list[Row]:
        """Return the rows of these texts, once their batch is done.

        Raises:
            QueueFullError: Too many texts wait.
            StoppingError: `stop` was called.
            Exception: Whatever `predict` raises for these texts.
        """
        if self._stopping:
            raise StoppingError
        if self.waiting + len(texts) > self._most_waiting:
            raise QueueFullError
        waiting = _Waiting(texts, asyncio.get_running_loop().create_future())
        self.waiting += len(texts)
        try:
            await self._queue.put(waiting)
            return await waiting.answer
        finally:
            self.waiting -= len(texts)

    async def run(self, work: Callable[[], Any]) -> Any:
        """Do other work of the model, such as an explanation, between two batches."""
        if self._stopping:
            raise StoppingError
        return await self._in_thread(work)

    async def _in_thread(self, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)

    async def _work(self) -> None:
        left: _Waiting | None = None
        while True:
            first = left or await self._queue.get()
            if first is None:
                return
            batch, left, ended = self._collect(first)
            await self._answer(batch)
            if ended:
                return

    def _collect(self, first: _Waiting) -> tuple[list[_Waiting], _Waiting | None, bool]:
        """Return a batch of what waits, the request that no longer fits, and whether the end was reached."""
        batch, texts = [first], len(first.texts)
        while not self._queue.empty():
            further = self._queue.get_nowait()
            if further is None:
                return batch, None, True
            if texts + len(further.texts) > self._most_texts:
                return batch, further, False
            batch.append(further)
            texts += len(further.texts)
        return batch, None, False

    async def _answer(self, batch: list[_Waiting]) -> None:
        """Predict a batch; where that fails, each request alone, so that only those at fault fail."""
        batch = [waiting for waiting in batch if not waiting.answer.cancelled()]
        if not batch:
            return
        texts = [text for waiting in batch for text in waiting.texts]
        self._seen(len(texts))
        try:
            rows = iter(await self._in_thread(lambda: self._predict(texts)))
        except Exception as error:
            if len(batch) > 1:
                for waiting in batch:
                    await self._answer([waiting])
            elif not batch[0].answer.cancelled():
                batch[0].answer.set_exception(error)
            return
        for waiting in batch:
            own = [next(rows) for _ in waiting.texts]
            if not waiting.answer.cancelled():
                waiting.answer.set_result(own)
