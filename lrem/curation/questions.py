"""What curation asks language models: the teacher's two questions and the judge's, as the answers are filed."""

from lrem.config import CurateConfig
from lrem.curation.answers import Question, question
from lrem.curation.prompts import extraction_messages, judge_messages, reasoning_messages


def reasoning(settings: CurateConfig, query: str, category: str | None) -> Question:
    """The teacher's first: think freely."""
    return question(settings.llm, reasoning_messages(query, category))


def extraction(settings: CurateConfig, query: str, thought: str) -> Question:
    """The teacher's second: the keywords of what it thought."""
    return question(settings.llm, extraction_messages(query, thought))


def judgement(settings: CurateConfig, query: str, title: str) -> Question:
    """The judge's: how well an item answers the query."""
    return question(settings.judge_llm, judge_messages(query, title))
