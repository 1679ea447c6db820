"""The tokens of a reasoning, as the budget counts them."""

from pathlib import Path

from lrem.curation.teacher import token_counter
from lrem.modeling.tokenizer import train_tokenizer


def test_tokens_are_counted_as_within_a_sequence(tmp_path: Path) -> None:
    tokenizer = train_tokenizer([" warm coat, warm hat"] * 9, 300)
    tokenizer.save_pretrained(tmp_path)
    count = token_counter(str(tmp_path))
    assert count("warm coat") == len(tokenizer.encode(" warm coat", add_special_tokens=False))
    assert count("warm coat") < len(tokenizer.encode("warm coat", add_special_tokens=False))


def test_words_and_commas_are_counted_without_a_tokenizer() -> None:
    assert token_counter(None)("warm coat, hat") == 4
