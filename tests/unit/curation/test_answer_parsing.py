"""Keywords and grades from the answers that small models really write."""

import contextlib
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lrem.curation.answer_parsing import MAX_CHARACTERS, parse_grade, parse_keywords


@pytest.mark.parametrize(
    ("answer", "keywords"),
    [
        ("helmet, gloves", "helmet, gloves"),
        ("Helmet,gloves , HELMET,, reflective vest.", "Helmet, gloves, reflective vest"),
        ("Keywords: helmet, gloves", "helmet, gloves"),
        ("**Keywords:** helmet, gloves", "helmet, gloves"),
        (
            "Sure! Here are the keyword phrases for your query:\n\nhelmet, gloves\n\nI hope this helps!",
            "helmet, gloves",
        ),
        ("Here is a list of search terms: helmet; gloves", "helmet, gloves"),
        ("- helmet\n- gloves\n- vest", "helmet, gloves, vest"),
        ("* **helmet**\n* *gloves*", "helmet, gloves"),
        ("1. Helmet\n2) gloves\n3: vest\n(4) lamp", "Helmet, gloves, vest, lamp"),
        ("1. helmet, 2. gloves", "helmet, gloves"),
        ("a) helmet\nb) gloves", "helmet, gloves"),
        ("```\nhelmet, gloves\n```", "helmet, gloves"),
        ("Sure.\n```text\nhelmet, gloves\n```\nAnything else?", "helmet, gloves"),
        ("```json\n[\"helmet\", 'gloves']\n```", "helmet, gloves"),
        ('{"keywords": ["helmet", "gloves"]}', "helmet, gloves"),
        ("(helmet, gloves)", "helmet, gloves"),
        ('"helmet", “gloves”, ‘vest’, 「lamp」', "helmet, gloves, vest, lamp"),
        ("<think>shoes, or boots?</think>\nboots, gaiters", "boots, gaiters"),
        ("shoes or boots? boots.</think>\n\nboots, gaiters", "boots, gaiters"),
        ("boots, gaiters <THINKING>or shoes?</thinking>", "boots, gaiters"),
        ("关键词：头盔，手套、骑行服；反光背心。", "头盔, 手套, 骑行服, 反光背心"),
        ("1、头盔\n2、手套", "头盔, 手套"),
        ("头盔：保护头部", "头盔"),
        ("- helmet: protects the head, face and neck\n- gloves - for grip", "helmet, gloves"),
        ("helmet (for the head, mostly), gloves", "helmet, gloves"),
        ("Products: helmet, gloves\nBrands: Giro, Bell\n", "helmet, gloves, Giro, Bell"),
        ("**Products:**\n- helmet\n**Attributes:**\n- reflective", "helmet, reflective"),
        ("helmet, gloves, and vest", "helmet, gloves, vest"),
        ("helmet, gloves\n\nExplanation: safe, warm, dry", "helmet, gloves"),
        ("helmet, gloves\nNote: these keywords are: good, better", "helmet, gloves"),
        ("3.5 mm jack, 1,000 lumen lamp, 12 pack socks", "3.5 mm jack, 1000 lumen lamp, 12 pack socks"),
        ("loose-fit dress\nstraight maxi dress", "loose-fit dress, straight maxi dress"),
        ("i-Size car seat, iPad case, T-shirt, USB-C", "i-Size car seat, iPad case, T-shirt, USB-C"),
    ],
)
def test_keywords_are_extracted(answer: str, keywords: str) -> None:
    assert parse_keywords(answer) == keywords
    assert parse_keywords(keywords) == keywords


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "no answer"),
        (" \n", "no answer"),
        ("<think>the shopper wants", "raise max_tokens"),
        ("<think>boots</think>", "raise max_tokens"),
        ("I'm sorry, but I can't help with that.", "no keyword phrase"),
        ("The shopper probably wants something that protects the head while riding.", "no keyword phrase"),
        ("None.", "no keyword phrase"),
        ("Keywords:", "no keyword phrase"),
        (", - , ...", "no keyword phrase"),
        ("```\n```", "no keyword phrase"),
    ],
)
def test_an_answer_without_keywords_is_an_error(answer: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_keywords(answer)


@given(st.text())
def test_any_answer_gives_unique_phrases_or_an_error(answer: str) -> None:
    try:
        phrases = parse_keywords(answer).split(", ")
    except ValueError:
        return
    assert all(phrase == " ".join(phrase.split()) and 0 < len(phrase) <= MAX_CHARACTERS for phrase in phrases)
    assert len({phrase.casefold() for phrase in phrases}) == len(phrases)


@pytest.mark.parametrize(
    ("answer", "grade"),
    [
        ("3", 3),
        (" 0.\n", 0),
        ("Grade: 2", 2),
        ("**1**", 1),
        ("grade-2", 2),
        ("2/3", 2),
        ("2.0", 2),
        ("２", 2),
        ("(1)", 1),
        ("On a scale of 0 to 3 this is a 2 because 3 is too much", 2),
        ("Grade (0-3): 1", 1),
        ("It has 12 pieces, so 3", 3),
        ("<think>0? no, 1?</think>2", 2),
        ("评分：3", 3),
    ],
)
def test_grades_are_extracted(answer: str, grade: int) -> None:
    assert parse_grade(answer) == grade


@pytest.mark.parametrize("answer", ["", "relevant", "4", "10", "-1", "1.5", "v2", "2nd", "0-3", "<think>maybe 2"])
def test_an_answer_without_a_grade_is_an_error(answer: str) -> None:
    with pytest.raises(ValueError, match="no grade|no answer|raise max_tokens"):
        parse_grade(answer)


@pytest.mark.parametrize("unit", ["(", "a", "keywords ", "<think>", "1x, ", "- ", "```\n", " ", "a - ", "<", "1"])
def test_parsing_takes_linear_time(unit: str) -> None:
    started = time.process_time()
    for parse in (parse_keywords, parse_grade):
        with contextlib.suppress(ValueError):
            parse(unit * 100_000)
    assert time.process_time() - started < 2
