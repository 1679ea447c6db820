"""Failure reasons: what a server or an engine said, short enough for one line of a report."""

MAX_CHARACTERS = 300


def failure_reason(message: str) -> str:
    """Return a message on one line, cut to `MAX_CHARACTERS`.

    >>> failure_reason("too long for\\nthe  model")
    'too long for the model'
    """
    return " ".join(message.split())[:MAX_CHARACTERS]
