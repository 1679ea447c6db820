"""The ledger hands out each unanswered request once, and counts all others as done."""

from pathlib import Path

from lrem.curation.answer_ledger import LOOKUP_BATCH, AnswerLedger
from lrem.curation.answer_store import AnswerStore
from lrem.curation.chat_requests import ChatRequest

MESSAGES = [{"role": "user", "content": "tea?"}]


def test_each_unanswered_request_is_handed_out_once(tmp_path: Path) -> None:
    progress: list[int] = []
    with AnswerStore(tmp_path / "answers.db") as answers:
        answers.put([("k3", "known")])
        ledger = AnswerLedger(answers, progress.append)
        keys = [f"k{i % 1500}" for i in range(4 * LOOKUP_BATCH)]
        handed_out = []
        for request in ledger.unanswered(ChatRequest(key, MESSAGES) for key in keys):
            handed_out.append(request.key)
            if request.key == "k5":
                ledger.record_failure("k5", "why not")
            elif int(request.key[1:]) % 2:
                ledger.record_answers([(request.key, "text")])
        assert handed_out == [f"k{i}" for i in range(1500) if i != 3]
        assert ledger.failures == {"k5": "why not"}
        assert ledger.in_flight == {f"k{i}" for i in range(0, 1500, 2)}
        assert len(answers) == 749
        assert progress == sorted(progress)
        assert ledger.done == progress[-1] == 4 * LOOKUP_BATCH - 750
