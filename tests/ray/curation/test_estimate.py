"""The estimate before a run, and the settings that start a new work folder."""

from pathlib import Path

from typer.testing import CliRunner

from lrem.curation.prompts import extraction_messages, judge_messages, reasoning_messages
from lrem.data.files import write_json
from ray_apps.cli.main import app
from ray_apps.curation.estimate import estimate_curation
from ray_apps.curation.run_folder import open_run
from tests.ray.curation.small_shop import LlmRun, small_shop, with_settings


def test_an_estimate_writes_nothing(llm_run: LlmRun) -> None:
    config = llm_run.config
    folder = config.path("triplets").parent
    overrides = [f"run_dir={config.run_dir}", "curate.top_k=4", "curate.rl_share=0.5", "curate.part_rows=3"]
    for section, length in (("llm", 500), ("judge_llm", 8)):
        llm = {"engine": "url", "model": "m", "url": "http://x", "max_tokens": length, "tokens_a_second": 0.5}
        overrides += [f"curate.{section}.{key}={value}" for key, value in llm.items()]
    overrides += ["curate.teacher=llm", "curate.judge=llm", "curate.llm.price_in=1000", "curate.llm.price_out=4000"]
    before = _files(folder)
    lines = CliRunner().invoke(app, ["curate", "--dry-run", *overrides]).output.splitlines()
    # 85 characters in 7 queries: a typical one has 12; 105 in 9 titles: 11; 20 + 10 pairs per query
    query, reasoning = "q" * 12, "t" * 2000
    prompts = [reasoning_messages(query), extraction_messages(query, reasoning)]
    teacher_tokens = 7 * sum(len(messages[0]["content"]) for messages in prompts) // 4
    judge_tokens = 210 * len(judge_messages(query, "t" * 11)[0]["content"]) // 4
    assert lines[-5:] == [
        "7 queries, 9 items; retriever bm25",
        "hard: not known yet, so the estimate counts all",
        f"teacher m: at most 14 requests, {teacher_tokens:,} tokens in, 7,000 out, {teacher_tokens / 1000 + 28:.2f} at "
        "the configured prices; 3.9 h at 0.5 tokens/s",
        f"judge m: at most 210 requests, {judge_tokens:,} tokens in, 1,680 out; 0.9 h at 0.5 tokens/s",
        "3 parts of 3 queries, 0 of them done",
    ]
    assert _files(folder) == before  # the settings differ from those of the run, whose parts stay


def _files(folder: Path) -> list[Path]:
    """List all but the write-ahead logs: SQLite removes them when the last actor of the earlier run has gone."""
    return sorted(path for path in folder.rglob("*") if not path.name.endswith(("-wal", "-shm")))


def test_an_estimate_knows_what_an_earlier_run_has_measured(llm_run: LlmRun) -> None:
    lines = estimate_curation(llm_run.config).splitlines()
    assert lines[1] == "hard: 5 of them"
    assert "at most 10 requests" in lines[2]
    assert lines[-1] == "3 parts of 3 queries, 3 of them done"


def test_settings_that_change_an_answer_start_a_new_folder(llm_run: LlmRun) -> None:
    config = llm_run.config
    folder = open_run(config).folder
    dearer = config.curate.llm.model_copy(update={"price_in": 9.0, "concurrency": 50})
    assert open_run(with_settings(config, llm=dearer)).folder == folder
    hotter = config.curate.llm.model_copy(update={"temperature": 0.1})
    assert open_run(with_settings(config, llm=hotter)).folder != folder
    assert open_run(with_settings(config, relevant_from=2)).folder != folder


def test_another_cross_encoder_in_the_same_folder_starts_a_new_folder(tmp_path: Path) -> None:
    model = tmp_path / "cross"
    write_json({"trained": 1}, model / "config.json")
    config = small_shop(tmp_path, judge="cross_encoder", cross_encoder=str(model))
    without = with_settings(config, judge="known")  # does not use it
    before, before_without = open_run(config).folder, open_run(without).folder
    write_json({"trained": 2}, model / "config.json")
    assert open_run(config).folder != before
    assert open_run(without).folder == before_without
