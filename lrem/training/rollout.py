"""What is sampled from a policy, as plain records: light to import, for processes that only pass them on."""

from typing import NamedTuple


class Rollout(NamedTuple):
    """One sampled completion: ids after the prompt, their log-probabilities (nats), the policy's version."""

    tokens: list[int]
    log_probs: list[float]
    version: int


class LoadReport(NamedTuple):
    """What an engine says of the weights it took: their version and checksum, and a probe of what it now samples."""

    version: int
    checksum: int
    probe: list[Rollout]


class ReasoningResponse(NamedTuple):
    """The reasonings of each query, None where it was not thought over, and the seconds until that was decided."""

    reasonings: list[list[str] | None]
    decided_s: float
