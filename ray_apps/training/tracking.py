"""A run's logs: JSON lines, TensorBoard, Prometheus, on request MLflow and Weights & Biases; and its progress bar.

A run that resumes from a checkpoint also resumes its logs: what an earlier attempt wrote after that step is dropped.
"""

import importlib.util
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from ray.actor import ActorHandle
from torch.utils.tensorboard import SummaryWriter

from lrem.config import Config
from lrem.data.files import atomic_file
from lrem.errors import DataError, TrainingFailed
from lrem.training.distributed import rank
from ray_apps.cluster import metrics


def require_trackers(trackers: Sequence[str]) -> None:
    """Raise DataError for a configured tracker that is not installed."""
    for name in trackers:
        if importlib.util.find_spec(name) is None:
            raise DataError(f"trackers: {name} is not installed: pip install {name}, or remove it from the list")


class StepWriter(Protocol):
    """A place that step values are logged to."""

    def write(self, step: int, values: Mapping[str, Any]) -> None: ...
    def close(self) -> None: ...


class TrainingLog:
    """The log of a run, written by rank 0; the other ranks only check the values.

    Args:
        name: NAME of the files in run_dir/logs: NAME.jsonl, and the TensorBoard folder NAME.
        first: steps that are done already; later ones in the files are dropped.
    """

    def __init__(
        self,
        config: Config,
        name: str,
        board: ActorHandle,
        steps: int,
        first: int = 0,
        trackers: Sequence[str] = (),
    ) -> None:
        self.board, self.steps = board, steps
        self.writers: list[StepWriter] = []
        if rank() == 0:
            folder = config.run_dir / "logs"
            self.writers = [JsonLines(folder / f"{name}.jsonl", first), _TensorBoard(folder / name, first)]
            self.writers.append(_Prometheus(config.run_dir.name, name))
            optional: dict[str, Callable[[Config, str, int], StepWriter]] = {"mlflow": _MlFlow, "wandb": _WandB}
            self.writers += [optional[tracker](config, name, first) for tracker in trackers]

    def step(self, step: int, values: Mapping[str, float], summary: str) -> None:
        """Log one finished step, counted from 1, and move the progress bar.

        Raises:
            TrainingFailed: a value is not finite.
        """
        check_finite(step, values)
        self.metrics(step, values)
        if self.writers:
            self.board.update.remote(step, self.steps, summary)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Log what was measured after a step, such as a dev set's metrics."""
        for writer in self.writers:
            writer.write(step, values)

    def close(self) -> None:
        """Flush and close every writer."""
        for writer in self.writers:
            writer.close()


def check_finite(step: int, values: Mapping[str, float]) -> None:
    """Raise TrainingFailed if a value is not finite; values are global, so every rank raises alike."""
    bad = [name for name, value in values.items() if not np.isfinite(value)]
    if bad:
        raise TrainingFailed(
            f"step {step}: {', '.join(bad)} is not finite: start over with a lower optim.lr, a smaller optim.clip or a "
            "higher temperature"
        )


class JsonLines:
    """A log file with one JSON object per step; lines that an earlier attempt wrote after `first` are dropped."""

    def __init__(self, file: Path, first: int) -> None:
        kept = [line for line in _complete_lines(file) if json.loads(line)["step"] <= first] if first else []
        with atomic_file(file) as part:
            part.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self.stream = file.open("a", encoding="utf-8")

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Append one step."""
        self.stream.write(json.dumps({"step": step, **values}) + "\n")
        self.stream.flush()

    def close(self) -> None:
        """Close the file."""
        self.stream.close()


def _complete_lines(file: Path) -> list[str]:
    """Return the complete lines: a killed writer may have left half of the last one."""
    if not file.exists():
        return []
    return [line for line in file.read_text(encoding="utf-8").split("\n")[:-1] if line.endswith("}")]


class _TensorBoard:
    def __init__(self, folder: Path, first: int) -> None:
        if not first:
            for old in folder.glob("events.out.tfevents.*"):
                old.unlink()
        self.writer = SummaryWriter(str(folder), purge_step=first + 1 if first else None)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class _Prometheus:
    def __init__(self, run: str, stage: str) -> None:
        self.labels = {"run": run, "stage": stage}

    def write(self, step: int, values: Mapping[str, float]) -> None:
        metrics.gauge("training_step", step, **self.labels)
        for name, value in values.items():
            metrics.gauge("training", value, **self.labels, name=name)

    def close(self) -> None:
        return


class _MlFlow:
    def __init__(self, config: Config, name: str, first: int) -> None:
        import mlflow

        self.client = mlflow
        mlflow.set_experiment("lrem")
        mlflow.start_run(run_name=f"{config.run_dir.name}/{name}")
        mlflow.log_params({"run_dir": str(config.run_dir), "seed": config.seed, "first_step": first})

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.client.log_metrics(dict(values), step=step)

    def close(self) -> None:
        self.client.end_run()


class _WandB:
    def __init__(self, config: Config, name: str, first: int) -> None:
        import wandb

        title = f"{config.run_dir.name}/{name}"
        self.run = wandb.init(project="lrem", name=title, config=config.model_dump(mode="json") | {"first_step": first})

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self.run.log(dict(values), step=step)

    def close(self) -> None:
        self.run.finish()
