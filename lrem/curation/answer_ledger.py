"""The state of one run of the batch LLM client: which requests are pending, failed or done."""

from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from lrem.curation.answer_store import AnswerStore
from lrem.curation.chat_requests import ChatRequest

LOOKUP_BATCH = 1000  # requests looked up in the store at once


class AnswerLedger:
    """Deduplicates the requests of a run against the answer store, and counts progress.

    Args:
        answers: the store; answers found there are not requested again.
        on_progress: called with the number of requests that are done: answered now or before, repeated, or failed.
    """

    def __init__(self, answers: AnswerStore, on_progress: Callable[[int], None] | None) -> None:
        self.answers, self._on_progress = answers, on_progress
        self.failures: dict[str, str] = {}  # key → reason
        self.in_flight: set[str] = set()
        self.done = 0

    def unanswered(self, requests: Iterable[ChatRequest]) -> Iterator[ChatRequest]:
        """Yield the requests that have no answer yet, each key once."""
        source = iter(requests)
        while batch := list(islice(source, LOOKUP_BATCH)):
            unique = {request.key: request for request in batch}
            known = self.answers.get(list(unique)).keys() | self.failures.keys() | self.in_flight
            pending = [request for key, request in unique.items() if key not in known]
            self.in_flight.update(request.key for request in pending)
            self._advance(len(batch) - len(pending))
            yield from pending

    def record_answers(self, answers: list[tuple[str, str]]) -> None:
        """Store (key, text) pairs; durable on return."""
        self.answers.put(answers)
        self.in_flight.difference_update(key for key, _ in answers)
        self._advance(len(answers))

    def record_failure(self, key: str, reason: str) -> None:
        """Record why a request has no answer."""
        self.failures[key] = reason
        self.in_flight.discard(key)
        self._advance(1)

    def _advance(self, count: int) -> None:
        self.done += count
        if count and self._on_progress is not None:
            self._on_progress(self.done)
