"""The sequence format: how a query, its reasoning and an item become token ids, and back.

    query   prefix q suffix <think> kw1, kw2, … </think><emb>
    item    prefix title suffix <emb>

The embedding is read at `<emb>`. The template is stored with the model, so that training, rollouts and serving
cannot disagree. Source: paper, "Sequence format".
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from lrem.data.catalogue_limits import CONTROL_TOKENS
from lrem.data.keywords import clean_keywords, join_phrases, split_phrases

THINK, CLOSE, EMB = CONTROL_TOKENS
QUERY, ITEM = "<query>", "<item>"
FILE = "lrem_template.json"


@dataclass(frozen=True)
class Template:
    """The text around a query or a title, and the token limits.

    `budget` is the paper's l, counted between `<think>` and `</think>`. `matryoshka` lists the shorter lengths to
    which embeddings can be cut.
    """

    query_prefix: str
    query_suffix: str
    item_prefix: str
    item_suffix: str
    budget: int = 16
    max_query_tokens: int = 64
    max_item_tokens: int = 96
    matryoshka: tuple[int, ...] = ()

    def save(self, folder: Path) -> None:
        """Write the template into a model folder."""
        (folder / FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> "Template":
        """Read the template of a model folder.

        Raises:
            FileNotFoundError: the folder has no template.
        """
        fields = json.loads((folder / FILE).read_text(encoding="utf-8"))
        return cls(**fields | {"matryoshka": tuple(fields.get("matryoshka", ()))})


# Markers instead of prose: a small model trained from scratch learns each role from one token.
COMPACT = Template(QUERY, "", ITEM, "")
# A pretrained model knows these words; a new token would mean nothing to it, and frozen lower layers would never learn
# to read it.
COMPACT_WORDS = Template("Query:", "", "Item:", "")
# ChatML, as in the training of Qwen2.5-Instruct; the instruction is our wording of the paper's description.
CHAT = Template(
    query_prefix="<|im_start|>system\nYou understand the shopping queries of an online shop.<|im_end|>\n"
    "<|im_start|>user\nThink about the shopping intent of the query from several angles and list related "
    "product phrases, separated by commas, without repeating the query.\nQuery:",
    query_suffix="<|im_end|>\n<|im_start|>assistant\n",
    item_prefix="<|im_start|>system\nYou understand the products of an online shop.<|im_end|>\n<|im_start|>user\nItem:",
    item_suffix="<|im_end|>\n<|im_start|>assistant\n",
)


def pretrained_template(name: str | None, tokenizer: PreTrainedTokenizerBase) -> Template:
    """Return the template `name` (None: chat) for a pretrained model; it begins with BOS if the model's texts do.

    Without its BOS a model such as Gemma understands nothing: its loss doubles.
    """
    template = CHAT if name in (None, "chat") else COMPACT_WORDS
    if name == "compact" and {QUERY, ITEM} <= tokenizer.get_vocab().keys():  # a model of ours that began with COMPACT
        template = COMPACT
    first = tokenizer.encode("")[:1]
    bos = tokenizer.bos_token if first and first[0] == tokenizer.bos_token_id else ""
    return replace(template, query_prefix=bos + template.query_prefix, item_prefix=bos + template.item_prefix)


class ParsedCompletion(NamedTuple):
    """One sampled completion: the ids of its reasoning, and whether it has the right format."""

    reasoning: list[int]
    well_formed: bool


class Renderer:
    """Text to token ids and back, for one template and one tokenizer.

    Raises:
        ValueError: the tokenizer lacks `<think>`, `</think>` or `<emb>` as single tokens.
    """

    def __init__(self, template: Template, tokenizer: PreTrainedTokenizerBase) -> None:
        self.template, self.tokenizer = template, tokenizer
        vocabulary = tokenizer.get_vocab()
        missing = [token for token in (THINK, CLOSE, EMB) if token not in vocabulary]
        if missing:
            raise ValueError(f"the tokenizer has no token {missing}: ReasoningEmbedder.load adds it")
        self.think, self.close, self.emb = (vocabulary[token] for token in (THINK, CLOSE, EMB))
        self.special = {*tokenizer.get_added_vocab().values(), *tokenizer.all_special_ids}
        self.special |= {self.think, self.close, self.emb}
        control = {*tokenizer.get_added_vocab(), *tokenizer.all_special_tokens, THINK, CLOSE, EMB}
        self.control = sorted(control, key=lambda token: (-len(token), token))  # longest first
        self._control = re.compile("|".join(map(re.escape, self.control)))
        self._query = self._encode(template.query_prefix), self._encode(template.query_suffix)
        self._item = self._encode(template.item_prefix), self._encode(template.item_suffix)

    def query_prompt(self, query: str) -> list[int]:
        """Return the ids up to where the model begins to write. A query beyond `max_query_tokens` is cut."""
        prefix, suffix = self._query
        return prefix + self.text_ids(query)[: self.template.max_query_tokens] + suffix

    def thinking_prompt(self, query: str) -> list[int]:
        """Return the ids up to where a reasoning begins: the prompt and `<think>`."""
        return [*self.query_prompt(query), self.think]

    def reasoning_ids(self, reasoning: str) -> list[int]:
        """Return the ids of a keyword list, cut after its last phrase within the budget.

        Only a first phrase that exceeds the budget alone is cut within.
        """
        ids, budget = self.text_ids(reasoning), self.template.budget
        if len(ids) <= budget:
            return ids
        phrases, kept = split_phrases(reasoning), ids[:budget]
        for count in range(1, len(phrases)):
            whole = self.text_ids(join_phrases(phrases[:count]))
            if len(whole) > budget:
                break
            kept = whole
        return kept

    def reasoning_text(self, ids: list[int]) -> str:
        """Return the keyword list that `ids` spell."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def thought_text(self, sampled: Sequence[int]) -> str:
        """Return the keyword list of a sampled reasoning, without special tokens and repeated phrases.

        Without a token that ends it (`</think>` or `<emb>`) it was cut at the budget: then its last phrase is dropped.
        """
        text = self.reasoning_text([token for token in sampled if token not in self.special])
        return clean_keywords(text, cut=not {self.close, self.emb}.intersection(sampled))

    def completion(self, reasoning: list[int]) -> list[int]:
        """Return `<think>` reasoning `</think><emb>`: what the model learns to write after the prompt."""
        return [self.think, *reasoning[: self.template.budget], self.close, self.emb]

    def query_ids(self, query: str, reasoning: str | None) -> list[int]:
        """Return a whole query sequence; with None, `<emb>` follows the prompt directly."""
        if reasoning is None:
            return [*self.query_prompt(query), self.emb]
        return self.query_prompt(query) + self.completion(self.reasoning_ids(reasoning))

    def item_ids(self, title: str) -> list[int]:
        """Return a whole item sequence. A title beyond `max_item_tokens` is cut."""
        prefix, suffix = self._item
        return [*prefix, *self.text_ids(title)[: self.template.max_item_tokens], *suffix, self.emb]

    def parse(self, sampled: list[int]) -> ParsedCompletion:
        """Read a sampled completion (paper: r_format is 1 for `<think> … </think><emb>`, else 0).

        The reasoning of a malformed completion is its ordinary tokens, cut to the budget.
        """
        body = sampled[1:-2]
        well_formed = (
            len(sampled) >= 3
            and sampled[0] == self.think
            and sampled[-2:] == [self.close, self.emb]
            and not self.special.intersection(body)
        )
        if well_formed:
            return ParsedCompletion(body, True)
        ordinary = [token for token in sampled if token not in self.special]
        return ParsedCompletion(ordinary[: self.template.budget], False)

    def text_ids(self, text: str) -> list[int]:
        """Return the ids of a user's text. Control tokens in it are removed: text is data.

        The text begins with a space, so that a word has the same token at the start as in the middle.
        """
        plain = " ".join(self._control.sub(" ", text).split())
        return self._encode(f" {plain}" if plain else "")

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False)) if text else []
