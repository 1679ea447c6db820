"""What the tasks of the reproduction train and score: the hyperparameter search, the systems, the length sweep."""

from typing import Any, NamedTuple

from reproduce_task import ORACLE, ReproductionTask
from seed_statistics import MACRO, gains, members, over_seeds

from lrem.evaluation.overrides import OVERRIDES

SEARCHED = ("direct", "cold-start")
# The fourth corner (1e-3, 0.03) was the worst of four for both systems with five epochs: claim.json of commit 421779e.
GRID = [("1.0e-3", "0.06"), ("2.0e-3", "0.06"), ("2.0e-3", "0.03")]
REINFORCED = {
    "lrem": [],
    "without InfoNCE": ["reinforce.info_nce_weight=0"],
    "without retrieval reward": ["reinforce.rewards.accuracy=0"],
}


class GridPoint(NamedTuple):
    """One point of the search, with its macro mean over the hard queries."""

    lr: str
    temperature: str
    hit_rate: float
    precision: float

    @property
    def value(self) -> float:
        """The mean of the two measures, by which points are compared."""
        return (self.hit_rate + self.precision) / 2


def search(task: ReproductionTask, stage: str) -> None:
    """Train and score every point of the grid for one stage."""
    for lr, temperature in GRID:
        name = _point_name(stage, lr, temperature)
        config = task.config(name, _overrides(stage, lr, temperature))
        task.score(name, task.train(name, stage, config), reasons=stage == "cold-start")


def grid_points(task: ReproductionTask, stage: str) -> list[GridPoint]:
    """Return the results of `search`."""
    return [
        GridPoint(lr, temperature, *task.means(_point_name(stage, lr, temperature))[MACRO]) for lr, temperature in GRID
    ]


def best(points: list[GridPoint]) -> GridPoint:
    """Return the point with the highest value."""
    return max(points, key=lambda point: point.value)


def train_systems(task: ReproductionTask, direct: GridPoint, cold: GridPoint) -> None:
    """Train and score the systems of one seed, with the hyperparameters of the search."""
    task.score_bm25()
    temperature = [f"reinforce.temperature={cold.temperature}"]
    config = task.config("cold start", _overrides("cold-start", cold.lr, cold.temperature))
    cold_start = task.train("cold start", "cold-start", config)
    task.score("cold start", cold_start)
    for name, overrides in REINFORCED.items():
        config = task.config(name, [*temperature, *overrides], cold_start)
        task.score(name, task.train(name, "reinforce", config), with_overrides=name == "lrem")
    direct_overrides = _overrides("direct", direct.lr, direct.temperature)
    config = task.config("direct", direct_overrides)
    task.score("direct", task.train("direct", "direct", config), reasons=False)
    both_stages = task.trainings["cold start"]["seconds"] + task.trainings["lrem"]["seconds"]
    epochs = max(1, round(config.direct.epochs * both_stages / task.trainings["direct"]["seconds"]))
    config = task.config("direct, same time", [*direct_overrides, f"direct.epochs={epochs}"])
    task.score("direct, same time", task.train("direct, same time", "direct", config), reasons=False)


def sweep_lengths(task: ReproductionTask, cold: GridPoint, lengths: list[int]) -> None:
    """Train both stages for each budget of reasoning, except that of the configuration, which has been trained."""
    for length in lengths:
        if length == task.budget:
            continue
        name, stage1 = f"length {length}", _overrides("cold-start", cold.lr, cold.temperature)
        config = task.config(f"{name}, cold start", [*stage1, f"model.budget={length}"])
        cold_start = task.train(f"{name}, cold start", "cold-start", config)
        config = task.config(name, [f"reinforce.temperature={cold.temperature}"], cold_start)
        task.score(name, task.train(name, "reinforce", config))


def build_report(tasks: dict[str, ReproductionTask], lengths: list[int]) -> dict[str, Any]:
    """Return all numbers of the page, and the means of each seed behind them."""
    names = ["BM25", "direct", "direct, same time", "cold start", *REINFORCED]
    reasoning = ["cold start", *REINFORCED]
    seeds = [task for name, task in tasks.items() if name.startswith("seed-")]
    searched = {stage: grid_points(tasks[f"search-{stage}"], stage) for stage in SEARCHED}
    means = {name: [task.means(name) for task in seeds] for name in names}
    pairs = [("lrem", "direct"), ("lrem", "direct, same time"), ("lrem", "cold start"), ("cold start", "direct")]
    return {
        "seeds": [task.seed for task in seeds],
        "k": seeds[0].base.evaluate.model_dump(include={"k", "precision_k"}),
        "search": {stage: [point._asdict() for point in points] for stage, points in searched.items()},
        "chosen": {stage: best(points)._asdict() for stage, points in searched.items()},
        "training": {name: task.trainings for name, task in tasks.items()},
        "queries": {
            str(task.seed): {group: len(ids) for group, ids in members(task.test[0]).items()} for task in seeds
        },
        "greedy": {name: over_seeds(means[name]) for name in names},
        "sampled": {name: over_seeds([task.means(name, "sampled") for task in seeds]) for name in reasoning},
        "overrides": {kind: over_seeds([task.means("lrem", kind) for task in seeds]) for kind in (*OVERRIDES, ORACLE)},
        "lengths": _length_report(tasks, seeds[0], lengths),
        "gains": {f"{a} over {b}": gains(means[a], means[b]) for a, b in pairs},
    }


def _length_report(
    tasks: dict[str, ReproductionTask], first: ReproductionTask, lengths: list[int]
) -> dict[str, dict[str, Any]]:
    """Return the means by budget, of the first seed; the configuration's own budget is that seed's LREM."""
    report = {}
    for length in lengths:
        swept = tasks[f"lengths-{first.seed}"]
        means = first.means("lrem") if length == first.budget else swept.means(f"length {length}")
        report[str(length)] = over_seeds([means])
    return report


def _point_name(stage: str, lr: str, temperature: str) -> str:
    return f"{stage}, lr {lr}, temperature {temperature}"


def _overrides(stage: str, lr: str, temperature: str) -> list[str]:
    section = stage.replace("-", "_")
    return [f"{section}.optim.lr={lr}", f"{section}.temperature={temperature}"]
