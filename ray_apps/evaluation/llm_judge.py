"""Precision by a judge, for runs whose items nobody has judged, with the judge's agreement beside it."""

from typing import Any

import pyarrow as pa

from lrem.config import Config
from lrem.curation.answer_store import AnswerStore
from lrem.curation.chat_requests import chat_request
from lrem.curation.judging import judge_agreement, judged_precision, parse_verdict
from lrem.curation.prompts import judge_messages
from lrem.evaluation.assembly import Outcome
from lrem.evaluation.metrics import Qrels
from ray_apps.evaluation.systems import Asked, answers_file
from ray_apps.llm.client import ask_model


def judge_precision(
    config: Config, asked: Asked, qrels: Qrels, outcomes: dict[str, Outcome], items: pa.Table
) -> dict[str, Any]:
    """Ask evaluate.judge_llm about the top judge_k of every system; nothing where no model is named.

    Items that the catalogue lacks, as a service may have some, and answers that cannot be read count as not accepted.
    """
    llm, k = config.evaluate.judge_llm, config.evaluate.judge_k
    if llm.model is None:
        return {}
    titles = dict(zip(items["item_id"].to_pylist(), items["title"].to_pylist(), strict=True))
    text = dict(zip(asked.ids, asked.texts, strict=True))
    tops = {
        name: {q: [item for item, _ in list(outcome.run.get(q, ()))[:k]] for q in asked.ids}
        for name, outcome in outcomes.items()
    }
    pairs = sorted({(q, item) for top in tops.values() for q, found in top.items() for item in found if item in titles})
    questions = {(q, item): chat_request(llm, judge_messages(text[q], titles[item])) for q, item in pairs}
    with AnswerStore(answers_file(config)) as answers:
        failed = ask_model(config, llm, questions.values(), answers)
        said = answers.get([one.key for one in questions.values()])
    verdicts = {pair: parse_verdict(said.get(one.key)) for pair, one in questions.items()}
    known = [
        (verdict, qrels[q][item] >= config.evaluate.relevant_from)
        for (q, item), verdict in verdicts.items()
        if verdict is not None and item in qrels[q]
    ]
    return {
        "name": llm.model,
        "k": k,
        "agreement": judge_agreement([judged for judged, _ in known], [truth for _, truth in known])
        | {
            "pairs asked": len(pairs),
            "without an answer": len(failed),
            "without a readable answer": sum(v is None for v in verdicts.values()) - len(failed),
        },
        "precision": {
            name: judged_precision([[verdicts.get((q, item)) for item in found] for q, found in top.items()], k)
            for name, top in tops.items()
        },
    }
