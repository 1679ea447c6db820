"""A run's record: JSON lines, TensorBoard, Prometheus always, MLflow, Weights & Biases if asked for, the progress bar.

Knows step numbers and named values; does not know what they mean. A run that goes on from a checkpoint goes on
here too: what a lost attempt wrote after that step is taken back.
"""

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from ray.actor import ActorHandle
from torch.utils.tensorboard import SummaryWriter

from lrem.config import Config
from lrem.data.files import atomic_file
from lrem.errors import DataError, TrainingFailed
from lrem.training.distributed import rank
from ray_apps.cluster import metrics


def require(trackers: Sequence[str]) -> None:
    """Raises DataError for a tracker that is asked for and not installed."""
    for name in trackers:
        if importlib.util.find_spec(name) is None:
            raise DataError(f"trackers: {name} is not installed: pip install {name}, or take it out of the list")


class Log:
    """Rank 0's record; the other ranks only check values.

    Args:
        name: of the files in run_dir/logs: NAME.jsonl, and the TensorBoard folder NAME.
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
        self.writers: list[Any] = []
        if rank() == 0:
            folder = config.run_dir / "logs"
            self.writers = [JsonLines(folder / f"{name}.jsonl", first), _TensorBoard(folder / name, first)]
            self.writers.append(_Prometheus(config.run_dir.name, name))
            made = {"mlflow": _MlFlow, "wandb": _WandB}
            self.writers += [made[tracker](config, name, first) for tracker in trackers]

    def __call__(self, step: int, values: dict[str, float], note: str) -> None:
        """Record one finished step, counted from 1.

        Raises:
            TrainingFailed: a value is not finite.
        """
        check_finite(step, values)
        self.add(step, values)
        if self.writers:
            self.board.update.remote(step, self.steps, note)

    def add(self, step: int, values: dict[str, float]) -> None:
        """Record what was measured after a step, as a dev set's metrics."""
        for writer in self.writers:
            writer.write(step, values)

    def close(self) -> None:
        """Flush and end every writer."""
        for writer in self.writers:
            writer.close()


def check_finite(step: int, values: dict[str, float]) -> None:
    """Raises TrainingFailed naming the values that are not finite and the step; every rank sees the same."""
    bad = [name for name, value in values.items() if not np.isfinite(value)]
    if bad:
        raise TrainingFailed(
            f"{', '.join(bad)} is not finite at step {step}: start over with a lower optim.lr, a smaller optim.clip or "
            "a higher temperature"
        )


class JsonLines:
    """One JSON object a step and line; lines after step `first` of an earlier attempt are dropped."""

    def __init__(self, file: Path, first: int) -> None:
        kept = [line for line in _lines(file) if json.loads(line)["step"] <= first] if first else []
        with atomic_file(file) as part:
            part.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        self.stream = file.open("a", encoding="utf-8")

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Append a step."""
        self.stream.write(json.dumps({"step": step, **values}) + "\n")
        self.stream.flush()

    def close(self) -> None:
        """End the file."""
        self.stream.close()


def _lines(file: Path) -> list[str]:
    """Whole lines: a killed writer may have left half of one."""
    if not file.exists():
        return []
    return [line for line in file.read_text(encoding="utf-8").split("\n")[:-1] if line.endswith("}")]


class _TensorBoard:
    def __init__(self, folder: Path, first: int) -> None:
        if not first:
            for old in folder.glob("events.out.tfevents.*"):
                old.unlink()
        self.writer = SummaryWriter(str(folder), purge_step=first + 1 if first else None)

    def write(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class _Prometheus:
    def __init__(self, run: str, name: str) -> None:
        self.labels = {"run": run, "stage": name}

    def write(self, step: int, values: dict[str, float]) -> None:
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

    def write(self, step: int, values: dict[str, float]) -> None:
        self.client.log_metrics(values, step=step)

    def close(self) -> None:
        self.client.end_run()


class _WandB:
    def __init__(self, config: Config, name: str, first: int) -> None:
        import wandb

        title = f"{config.run_dir.name}/{name}"
        self.run = wandb.init(project="lrem", name=title, config=config.model_dump(mode="json") | {"first_step": first})

    def write(self, step: int, values: dict[str, float]) -> None:
        self.run.log(values, step=step)

    def close(self) -> None:
        self.run.finish()
