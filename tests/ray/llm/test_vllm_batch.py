"""vLLM on Ray Data: prompts, answers equal to those of transformers, and the time limit."""

import re
import time
from pathlib import Path

import pytest
import ray
import torch

from lrem.config import LlmConfig, load_config
from lrem.curation.answer_store import AnswerStore
from lrem.curation.chat_requests import ChatRequest
from lrem.modeling.model import ReasoningEmbedder
from lrem.modeling.tokenizer import train_tokenizer
from ray_apps.cluster.session import cluster
from ray_apps.llm.client import ask_model
from ray_apps.llm.vllm_batch import tokenize_prompt
from tests.conftest import TITLES
from tests.ray.llm.helpers import CONFIG, requests

CHATML = (
    "{% for m in messages %}<query>{{ m['role'] }} {{ m['content'] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<item>{% endif %}"
)


def test_a_prompt_follows_the_chat_template_or_is_plain_lines() -> None:
    tokenizer = train_tokenizer([f" {title}" for title in TITLES], 400)
    messages = [{"role": "system", "content": "red"}, {"role": "user", "content": "blue coat"}]
    tokenizer.chat_template = None
    assert tokenizer.decode(tokenize_prompt(messages, tokenizer)) == "system: red\nuser: blue coat\nassistant:"
    tokenizer.chat_template = CHATML
    ids = tokenize_prompt(messages, tokenizer)
    assert tokenizer.decode(ids) == "<query>system red<eos><query>user blue coat<eos><item>"
    assert ids.count(tokenizer.eos_token_id) == 2


@pytest.fixture(scope="module")
def talkative(tiny: ReasoningEmbedder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with larger random weights, which answers different requests differently."""
    state = {name: 10 * w if "proj" in name else w for name, w in tiny.lm.state_dict().items()}
    tiny.save(folder := tmp_path_factory.mktemp("talkative") / "model", state)
    return folder


def greedy(folder: Path, requests: list[ChatRequest], length: int) -> dict[str, str]:
    """Return the answers of transformers by key; half a character at the end is dropped, as vLLM does."""
    model, texts = ReasoningEmbedder.load(folder), {}
    for request in requests:
        ids = torch.tensor([tokenize_prompt(request.messages, model.tokenizer)])
        output = model.lm.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=length, do_sample=False)
        text = str(model.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True))
        texts[request.key] = text.rstrip("\ufffd")
    return texts


@pytest.mark.slow
def test_vllm_answers_as_transformers_does(talkative: Path, answers: AnswerStore) -> None:
    llm = LlmConfig(model=str(talkative), dtype="float32", max_model_len=64, max_tokens=8, batch_size=2)
    short = list(requests(llm, TITLES[:7]))
    [long] = requests(llm, ["red wool coat " * 60])
    answers.put([(short[3].key, "known before")])
    progress: list[int] = []
    with cluster(CONFIG):
        failures = ask_model(CONFIG, llm, [*short, long, *short], answers, progress.append)
    assert failures.keys() == {long.key}
    assert re.search("maximum context length is 64 tokens", failures[long.key])
    expected = greedy(talkative, short, 8)
    assert len(set(expected.values())) == 7
    saved = answers.get(list(expected))
    assert saved.pop(short[3].key) == "known before"
    generated = {key: text.rstrip("\ufffd") for key, text in saved.items()}
    assert generated | {short[3].key: expected[short[3].key]} == expected
    assert progress[-1] == 15
    assert len(progress) > 3  # batch by batch, not all at the end
    gone = llm.model_copy(update={"model": "/nowhere"})
    assert ask_model(CONFIG, gone, short, answers) == {}  # nothing to ask: needs neither the model nor Ray


@pytest.mark.slow
def test_vllm_without_an_answer_times_out(talkative: Path, answers: AnswerStore) -> None:
    llm = LlmConfig(model=str(talkative), dtype="float32", max_model_len=64, max_tokens=8, timeout_s=0.01)
    config = load_config(None, ["ray.num_cpus=4", "ray.start_timeout_s=1"])
    started = time.monotonic()
    message = r"1\.08 s .*ray\.start_timeout_s \+ 8 × timeout_s"
    with pytest.raises(TimeoutError, match=message), cluster(config):
        ask_model(config, llm, requests(llm, ["red coat"]), answers)
    assert time.monotonic() - started < 120
    time.sleep(3)
    assert not ray.is_initialized(), "something kept calling Ray, which started a cluster for it"
