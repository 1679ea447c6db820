"""Helpers of serve.py's parts: generated texts, ratios of pairs, processes of sides, time limits."""

import random
import signal
import socket
import statistics
import subprocess
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from paired_runner import start

WORDS = 64  # a power of two, see `query`
LONGEST = 40  # words of a title


def words(titles: Sequence[str]) -> list[str]:
    """Return the most frequent words of the titles."""
    frequent = [word for word, _ in Counter(word for title in titles for word in title.split()).most_common(WORDS)]
    if len(frequent) < WORDS:
        raise SystemExit(f"the titles have {len(frequent)} different words, not {WORDS}: use a larger catalogue")
    return frequent


def query(vocabulary: Sequence[str], number: int) -> str:
    """Return the number-th query of four words; all numbers below 64⁴ = 16.7 M give different queries.

    Multiplying by an odd number permutes the numbers modulo a power of two, so neighbours share no prefix.
    """
    mixed = number * 0x9E3779B1 % WORDS**4
    return " ".join(vocabulary[mixed // WORDS**place % WORDS] for place in range(4))


def varied(vocabulary: Sequence[str], count: int) -> list[str]:
    """Return `count` titles of 2 to 40 words, most of them short, as in a catalogue."""
    draw = random.Random(0)
    lengths = [min(LONGEST, max(2, round(draw.lognormvariate(2, 0.6)))) for _ in range(count)]
    return [" ".join(draw.choices(vocabulary, k=length)) for length in lengths]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Return the median, range and all values of a ratio with one value per pair."""
    rounded = [round(value, 3) for value in values]
    return {"median": round(statistics.median(rounded), 3), "range": [min(rounded), max(rounded)], "pairs": rounded}


@contextmanager
def side(command: list[str], environment: dict[str, str], errors: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a side's process during a block. If the block fails, print its stderr."""
    process = start(command, environment, errors)
    try:
        yield process
    except SystemExit:
        print(errors.read_text()[-2000:])
        raise
    finally:
        process.kill()
        process.wait(timeout=60)


@contextmanager
def within(seconds: float, what: str) -> Iterator[None]:
    """Raise TimeoutError if the block takes longer; the error names what it waited for. Main thread only."""

    def late(*_: Any) -> None:
        raise TimeoutError(f"waited {seconds:g} s for {what}")

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def free_port() -> int:
    """Return a port that nothing listens on, below the range that the system assigns itself."""
    for port in random.SystemRandom().sample(range(20000, 32000), 50):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise OSError("no free port between 20000 and 32000")
