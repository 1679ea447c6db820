"""What curation resolves and checks in its settings before anything runs."""

from pathlib import Path
from typing import Any

from lrem.config import Config, CurateConfig
from lrem.curation.cross_encoder import CrossEncoderJudge
from lrem.curation.teacher import token_counter
from lrem.data.schema import QUERIES, open_table, read_items
from lrem.errors import DataError

DEFAULT_TEST_SHARE = 0.1  # of queries without a split of their own


def resolve_settings(config: Config) -> Config:
    """Return the settings with `test_share` as a number, and with absolute folders of models.

    A Ray worker has another working directory than the command.

    Raises:
        DataError: the queries cannot be read; whether they have a split decides the default of `test_share`.
    """
    update: dict[str, Any] = {}
    if config.curate.test_share is None:
        has_split = "split" in open_table(config.path("queries"), QUERIES).schema.names
        update["test_share"] = 0.0 if has_split else DEFAULT_TEST_SHARE
    specs = {"retriever": config.curate.retriever, "cross_encoder": config.curate.cross_encoder}
    paths = {name: Path(spec) for name, spec in specs.items() if spec is not None and spec != "bm25"}
    update |= {name: str(path.absolute()) for name, path in paths.items() if path.is_dir()}
    return config.model_copy(update={"curate": config.curate.model_copy(update=update)})


def check_settings(config: Config) -> None:
    """Check resolved settings and load what they name, so that a mistake is found before the long part of a run.

    Raises:
        DataError: an input cannot be read, settings contradict each other, or a model is missing.
    """
    open_table(config.path("queries"), QUERIES)
    read_items(config.path("items"))
    for name in ("triplets", "rl_pairs"):
        if "://" in config.uri(name):
            raise DataError(
                f"paths.{name} is {config.uri(name)}, but curation writes to a local disk: set a local path and copy "
                "the file afterwards"
            )
    settings = config.curate
    if settings.rl_share + settings.dev_share + (settings.test_share or 0.0) >= 1:
        raise DataError("curate.rl_share, dev_share and test_share leave no query for the cold start: lower one")
    if settings.teacher == "file" and not config.path("teacher").exists():
        raise DataError(
            f"{config.path('teacher')} does not exist: set paths.teacher to a file of reasonings, or curate.teacher to "
            "catalogue (needs no model) or llm"
        )
    _check_models(settings)
    token_counter(config.model.source)


def _check_models(settings: CurateConfig) -> None:
    roles = (("teacher", settings.teacher, "llm"), ("judge", settings.judge, "judge_llm"))
    for role, kind, section in roles:
        if kind == "llm" and getattr(settings, section).model is None:
            raise DataError(f"curate.{role}=llm needs a model: set curate.{section}.model")
    if settings.judge == "cross_encoder":
        if settings.cross_encoder is None:
            raise DataError("curate.judge=cross_encoder needs a model: set curate.cross_encoder")
        CrossEncoderJudge(settings.cross_encoder)
