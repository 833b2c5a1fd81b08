"""The second half of work on chunks, in a thread of its own."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType

MOST_WAITING = 4  # jobs, each with a chunk of at most 1 MiB


class SecondStage:
    """Runs jobs one after another beside the caller, who waits when too many are pending.

    Leaving the block waits for all of them. What a job raises is raised in the caller, by the
    next ``submit`` or at the end.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._waiting: deque[Future[object]] = deque()

    def submit(self, job: Callable[[], object]) -> None:
        if len(self._waiting) >= MOST_WAITING:
            self._waiting.popleft().result()
        self._waiting.append(self._thread.submit(job))

    def __enter__(self) -> "SecondStage":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._thread.shutdown(cancel_futures=kind is not None)
        if kind is None:
            for pending in self._waiting:
                pending.result()
