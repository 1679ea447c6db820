"""Precision by an LLM judge, for items without judgements, with the judge's agreement where judgements exist."""

from typing import Any

import pyarrow as pa

from lrem.config import Config
from lrem.curation.answer_store import AnswerStore
from lrem.curation.chat_requests import chat_request
from lrem.curation.prompts import judge_messages
from lrem.curation.verdicts import judge_agreement, judged_precision, parse_verdict
from lrem.evaluation.metrics import Qrels
from lrem.evaluation.system_run import SystemRun
from ray_apps.evaluation.baselines import answers_file
from ray_apps.evaluation.query_set import QuerySet
from ray_apps.llm.client import ask_model


def judge_precision(
    config: Config, queries: QuerySet, qrels: Qrels, systems: dict[str, SystemRun], items: pa.Table
) -> dict[str, Any]:
    """Let evaluate.judge_llm grade the top judge_k items of every system; returns the report's section `judge`.

    Without a model the section is empty. Items that are not in the catalogue (a service may have some), and answers
    that cannot be read, count as not accepted.
    """
    llm, k = config.evaluate.judge_llm, config.evaluate.judge_k
    if llm.model is None:
        return {}
    titles = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))
    texts = dict(zip(queries.ids, queries.texts, strict=True))
    tops = {
        name: {q: [item for item, _ in list(system.run.get(q, ()))[:k]] for q in queries.ids}
        for name, system in systems.items()
    }
    pairs = sorted({(q, item) for top in tops.values() for q, hits in top.items() for item in hits if item in titles})
    requests = {(q, item): chat_request(llm, judge_messages(texts[q], titles[item])) for q, item in pairs}
    with AnswerStore(answers_file(config)) as store:
        failures = ask_model(config, llm, requests.values(), store)
        answers = store.get([request.key for request in requests.values()])
    verdicts = {pair: parse_verdict(answers.get(request.key)) for pair, request in requests.items()}
    comparable = [
        (verdict, qrels[q][item] >= config.evaluate.relevant_from)
        for (q, item), verdict in verdicts.items()
        if verdict is not None and item in qrels[q]
    ]
    return {
        "name": llm.model,
        "k": k,
        "agreement": judge_agreement([judged for judged, _ in comparable], [truth for _, truth in comparable])
        | {
            "pairs asked": len(pairs),
            "without an answer": len(failures),
            "without a readable answer": sum(v is None for v in verdicts.values()) - len(failures),
        },
        "precision": {
            name: judged_precision([[verdicts.get((q, item)) for item in hits] for q, hits in top.items()], k)
            for name, top in tops.items()
        },
    }
