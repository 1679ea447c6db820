"""Deploying: what is refused before the service runs, and the service as one Serve application."""

import shutil
import socket
from pathlib import Path

import pytest
from ray import serve

from lrem.config import Config
from lrem.errors import SnapshotError
from lrem.index.snapshot import read_manifest
from lrem.modeling.model import fingerprint
from ray_apps.serving import deploy
from tests.serving import QUERIES, Served, build_world, search


def test_a_taken_port_is_a_one_line_error(world: Config) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", world.serve.port))
        taken.listen()
        with pytest.raises(ConnectionError, match=f"127.0.0.1:{world.serve.port} .*serve.port") as caught:
            deploy.start(world)
    assert "\n" not in str(caught.value)


def test_a_snapshot_of_another_model_is_refused(world: Config, tmp_path: Path) -> None:
    other = build_world(tmp_path, world.serve.port, seed=1).path("index")
    config = world.model_copy(update={"paths": world.paths.model_copy(update={"index": other})})
    with pytest.raises(SnapshotError) as caught:
        deploy.start(config)
    assert fingerprint(world.path("model")) in str(caught.value)
    assert read_manifest(other)["model"] in str(caught.value)


@pytest.mark.slow
def test_a_damaged_snapshot_is_never_served(world: Config, tmp_path: Path) -> None:
    damaged = Path(shutil.copytree(world.path("index"), tmp_path / "index"))
    with (damaged / "ann/index.faiss").open("ab") as stream:
        stream.write(b"x")
    config = world.model_copy(update={"paths": world.paths.model_copy(update={"index": damaged})})
    with pytest.raises(ConnectionError, match=r"IndexShard.: .*index\.faiss") as caught:
        deploy.start(config)
    assert "\n" not in str(caught.value)


@pytest.mark.slow
def test_the_whole_service_runs_as_one_application(served: Served, world: Config) -> None:
    """As `serve deploy` runs it, with one shard of its own: the results are the same."""
    settings = [f"run_dir={world.run_dir}", "serve.shards=1", "serve.embedder.max_replicas=2"]
    application = deploy.application({"settings": settings})
    serve.run(application, name="whole", route_prefix="/whole")
    try:
        body = {"queries": QUERIES, "k": 5, "reason": "never"}
        response = served.http.post("/whole/v1/search", json=body).json()
    finally:
        serve.delete("whole")
    for one, other in zip(response["results"], search(served, **body)["results"], strict=True):
        assert [item["item_id"] for item in one["items"]] == [item["item_id"] for item in other["items"]]
