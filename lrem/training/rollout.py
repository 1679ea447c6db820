"""Records of what a policy samples and which weights an engine holds; light to import, without torch."""

from typing import NamedTuple


class Rollout(NamedTuple):
    """One sampled completion: ids after the prompt, their log-probabilities (nats), the policy's version."""

    tokens: list[int]
    log_probs: list[float]
    version: int


class LoadReport(NamedTuple):
    """An engine's answer to new weights: their version and checksum, and a probe of what it now samples."""

    version: int
    checksum: int
    probe: list[Rollout]


class SyncReport(NamedTuple):
    """The result of a weight sync: each engine's report by its name."""

    loaded: dict[str, LoadReport]
    waited_s: float  # seconds until the calls before the sync were answered
    restarts: int  # engines replaced so far


class ReasoningResponse(NamedTuple):
    """The reasonings of each query, None for a query that needs none, and the seconds until that was decided."""

    reasonings: list[list[str] | None]
    decided_s: float
