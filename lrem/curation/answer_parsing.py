"""Reading a language model's answers: keyword lists and grades, whatever text stands around them."""

import re
import unicodedata

from lrem.data.words import normalize

THINK_TAG = re.compile(r"(</?think(?:ing)?>)", re.I)
MAX_ANSWER = 4000  # characters read of an answer, thoughts excluded: bounds the time of the patterns below
FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:```|\Z)", re.S)
LABEL = re.compile(  # "Here are the keywords:", "**Keyword phrases:**", '{"keywords": [', "关键词："
    r"[^\n:：]{0,80}\b(?:keywords?|phrases?|terms?|answer|output|list)\b[^\n:：,，]{0,40}[:：]|[^\n:：]{0,20}关键[词字][:：]",
    re.I,
)
TRAILING_NOTE = re.compile(r"\n\W*(?:explanations?|notes?|reasoning|rationale|why|解释|说明)\W*[:：].*", re.S | re.I)
HEADING = re.compile(  # the label of one line among several: "Brands: Giro, Bell"
    r"^\W*(?:products?(?: types?| kinds?| names?)?|brands?|attributes?|features?|categor(?:y|ies)|materials?|colou?rs?"
    r"|kinds?|types?)\W*[:：]\W*",
    re.I,
)
PARENTHESIS = re.compile(r"\([^()]*\)|（[^（）]*）")  # an explanation after a phrase
THOUSANDS_COMMA = re.compile(r"(?<=\d),(?=\d{3}\b)")
PHRASE_SEPARATOR = re.compile(r"[,，、;；|]")
BULLET = re.compile(r"^\s*(?:[-*•·●▪–—+>#]+\s+|[•·●▪]|\(?(?:\d{1,2}|[a-z])[)）]\s*|\d{1,2}\s*[.．、:](?!\d)\s*)+")
EXPLANATION = re.compile(r":\s.*|：.*|\s[-–—]\s.*|\s*(?:→|=>).*")
EDGE_CHARACTERS = " \t\r\n\"'`*_“”‘’「」『』《》[]{}<>.。…:："
CHATTER = re.compile(
    r"(?:sure|okay|ok|certainly|of course)(?:[!.]|$)|(?:none|n/a|nothing|etc|and so on|notes?|keywords?|answer|output"
    r"|text|json|unknown|no keywords?)$|(?:i'm|i am|i can|i cannot|i can't|i would|i hope|i think|sorry|but|let me"
    r"|here (?:is|are|you)|these|this|that|the (?:query|user|shopper|customer)|it is|it's|based on|please"
    r"|we (?:can|need))\s",
    re.I,
)
MAX_WORDS, MAX_CHARACTERS = 6, 60  # a longer phrase is a sentence


def parse_keywords(answer: str) -> str:
    """Extract the keyword list from an answer, as `kw1, kw2`.

    >>> parse_keywords("<think>rain…</think>Keywords:\\n1. **rubber boots**\\n2. Umbrella.")
    'rubber boots, Umbrella'

    Raises:
        ValueError: the answer contains no keyword phrase; the message says why.
    """
    text = _without_thoughts(answer)
    fenced = FENCE.search(text)
    text = TRAILING_NOTE.sub("", fenced.group(1) if fenced else text).replace("```", "\n")
    label = LABEL.search(text)
    phrases = (label and _phrases(text[label.end() :])) or _phrases(text)
    if not phrases:
        raise ValueError(f"no keyword phrase in the answer: {' '.join(answer.split())[:80]!r}")
    return ", ".join(phrases)


def _phrases(text: str) -> list[str]:
    """Return the phrases of a list, without repetitions that differ in case only."""
    text = text.strip(EDGE_CHARACTERS).replace("’", "'")
    if text.startswith(("(", "（")) and text.count("(") + text.count("（") == 1:  # a list in parentheses
        text = text.strip("()（）")
    kept: dict[str, str] = {}
    for line in THOUSANDS_COMMA.sub("", PARENTHESIS.sub(" ", text)).splitlines():
        line = HEADING.sub("", line)
        if BULLET.match(line):  # the explanation in "- helmet: for the head, and the face" ends with the line
            line = EXPLANATION.sub("", BULLET.sub("", line))
        for part in PHRASE_SEPARATOR.split(line):
            if phrase := _phrase(part):
                kept.setdefault(normalize(phrase), phrase)
    return list(kept.values())


def _phrase(part: str) -> str:
    """Return the keyword phrase in one part of a list, or an empty string if there is none."""
    part = EXPLANATION.sub("", BULLET.sub("", part.strip(EDGE_CHARACTERS))).strip(EDGE_CHARACTERS)
    words = re.sub(r"^(?:and|or)\s+", "", part, flags=re.I).strip(EDGE_CHARACTERS).split()
    phrase = " ".join(words)
    if len(words) > MAX_WORDS or len(phrase) > MAX_CHARACTERS or not any(character.isalnum() for character in phrase):
        return ""
    if phrase.endswith(("!", "?", "！", "？")) or CHATTER.match(phrase) or re.fullmatch(r"\d{1,2}", phrase):
        return ""
    return phrase


def _without_thoughts(answer: str) -> str:
    """Return an answer without the thoughts of a reasoning model. Raises ValueError if nothing remains."""
    kept: list[str] = []
    thinking = False
    for part in THINK_TAG.split(answer):
        if THINK_TAG.fullmatch(part):
            if part[1] == "/" and not thinking:  # the chat template may have opened the thought within the prompt
                kept.clear()
            thinking = part[1] != "/"
        elif not thinking:
            kept.append(part)
    text = "".join(kept).strip()
    if not text:
        raise ValueError("the answer ends within its thoughts: raise max_tokens" if answer.strip() else "no answer")
    return text[:MAX_ANSWER]


SCALE_NAME = re.compile(r"\b0\s*(?:-|–|to|through)\s*3\b")
NUMBER = re.compile(r"(?<![\w.])-?\d+(?:\.\d+)?(?!\w)")


def parse_grade(answer: str) -> int:
    """Return the first number from 0 to 3 in an answer; the name of the scale (`0-3`) does not count.

    >>> [parse_grade(text) for text in ("2", "**Grade: 3**", "on a scale of 0-3, 1.", "2/3")]
    [2, 3, 1, 2]

    Raises:
        ValueError: the answer contains no grade.
    """
    text = SCALE_NAME.sub(" ", unicodedata.normalize("NFKC", _without_thoughts(answer)))
    for number in NUMBER.findall(text):
        if number.removesuffix(".0") in ("0", "1", "2", "3"):
            return int(number[0])
    raise ValueError(f"no grade from 0 to 3 in the answer: {' '.join(answer.split())[:80]!r}")
