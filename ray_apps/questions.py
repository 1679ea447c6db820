"""What curation asks language models: the teacher's two questions and the judge's, as the answers are filed."""

from lrem.curation.answers import Question, question_key
from lrem.curation.prompts import extraction_messages, judge_messages, reasoning_messages
from lrem.curation.settings import CurateConfig
from lrem.settings import LlmConfig


def reasoning(settings: CurateConfig, query: str, category: str | None) -> Question:
    """The teacher's first: think freely."""
    return _question(settings.llm, reasoning_messages(query, category))


def extraction(settings: CurateConfig, query: str, thought: str) -> Question:
    """The teacher's second: the keywords of what it thought."""
    return _question(settings.llm, extraction_messages(query, thought))


def judgement(settings: CurateConfig, query: str, title: str) -> Question:
    """The judge's: how well an item answers the query."""
    return _question(settings.judge_llm, judge_messages(query, title))


def _question(llm: LlmConfig, messages: list[dict[str, str]]) -> Question:
    return Question(question_key(llm.model or "", messages, llm.temperature, llm.max_tokens), messages)
