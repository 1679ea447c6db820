"""What the parts of serve.py share: texts made of a catalogue's words, ratios of pairs, sides that end, time limits.

Knows nothing of what is measured.
"""

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
    """The most frequent words."""
    found = [word for word, _ in Counter(word for title in titles for word in title.split()).most_common(WORDS)]
    if len(found) < WORDS:
        raise SystemExit(f"the titles hold {len(found)} different words, {WORDS} are needed: take a larger catalogue")
    return found


def query(vocabulary: Sequence[str], number: int) -> str:
    """The number-th query of four words: another one for every number below 64⁴, which is 16.7 M.

    An odd multiplier is a permutation modulo a power of two, so that neighbours share no beginning.
    """
    mixed = number * 0x9E3779B1 % WORDS**4
    return " ".join(vocabulary[mixed // WORDS**place % WORDS] for place in range(4))


def varied(vocabulary: Sequence[str], count: int) -> list[str]:
    """`count` titles of 2 to 40 words, most of them short, as catalogues have them."""
    draw = random.Random(0)
    lengths = [min(LONGEST, max(2, round(draw.lognormvariate(2, 0.6)))) for _ in range(count)]
    return [" ".join(draw.choices(vocabulary, k=length)) for length in lengths]


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Of a ratio, a value a pair: its median, its range and every value."""
    rounded = [round(value, 3) for value in values]
    return {"median": round(statistics.median(rounded), 3), "range": [min(rounded), max(rounded)], "pairs": rounded}


@contextmanager
def side(command: list[str], environment: dict[str, str], errors: Path) -> Iterator[subprocess.Popen[str]]:
    """A side's process for the length of a block. What it wrote to stderr is shown if the block fails."""
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
    """Raise TimeoutError, saying what was waited for, once the block has taken so long. For the main thread."""

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
    """One that nothing listens on, below those that the system hands out to others."""
    for port in random.SystemRandom().sample(range(20000, 32000), 50):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
    raise OSError("no free port between 20000 and 32000")
