"""The key of a request depends on everything that its answer depends on, and never changes."""

from hypothesis import given
from hypothesis import strategies as st

from lrem.curation.chat_requests import request_key


@given(st.text(), st.text(), st.floats(0, 2), st.integers(1, 4096))
def test_a_key_depends_on_everything_that_an_answer_depends_on(
    model: str, text: str, temperature: float, max_tokens: int
) -> None:
    def key(**change: object) -> str:
        arguments = {"model": model, "messages": [{"role": "user", "content": text}], "temperature": temperature}
        return request_key(**(arguments | {"max_tokens": max_tokens} | change))  # type: ignore[arg-type]

    reordered = [{"content": text, "role": "user"}]
    assert key() == key(messages=reordered)
    assert len(key()) == 32
    others = [
        key(model=model + "x"),
        key(messages=[{"role": "user", "content": text + "x"}]),
        key(messages=[{"role": "system", "content": text}]),
        key(messages=reordered * 2),
        key(temperature=temperature + 0.5),
        key(max_tokens=max_tokens + 1),
    ]
    assert len({key(), *others}) == 7


def test_a_key_never_changes() -> None:
    """Otherwise every answer that was paid for would be requested again."""
    messages = [{"role": "user", "content": "tea?"}]
    assert request_key("m", messages, 0.7, 512) == "a7d1c54713917623b3f8fc4a739c1e49"
