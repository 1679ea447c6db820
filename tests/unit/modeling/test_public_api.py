"""The public API: the README's five lines do what they say, on a model folder."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lrem
from lrem.modeling.model import ReasoningEmbedder

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("page", ["README.md", "docs/concepts.md"])
def test_the_five_lines_of_python(tiny_folder: Path, page: str) -> None:
    """Load a folder, reason, embed queries and items, score: the scores are the cosines of the embeddings."""
    [code] = re.findall(r"```python\n(.*?from lrem import.*?)```", (ROOT / page).read_text(), re.DOTALL)
    names: dict[str, object] = {}
    exec(code.replace("runs/demo/model", str(tiny_folder)), names)
    model, scores = ReasoningEmbedder.load(tiny_folder), names["scores"]
    queries, reasonings = names["queries"], names["reasonings"]
    assert isinstance(scores, np.ndarray)
    assert scores.shape == (1, 2)
    assert reasonings == model.reason(queries)  # type: ignore[arg-type]
    items = model.encode_items(["outdoor fire bowl", "watering can"])
    expected = model.encode_queries(queries, reasonings) @ items.T  # type: ignore[arg-type]
    assert np.abs(scores - expected).max() < 1e-6
    assert np.abs(scores).max() <= 1 + 1e-6


def test_every_public_name_can_be_imported() -> None:
    assert {name for name in lrem.__all__ if getattr(lrem, name) is not None} == {*lrem.__all__}
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = lrem.no_such_name


def test_importing_lrem_alone_is_cheap() -> None:
    """Light processes read the version; torch would cost them seconds and hundreds of megabytes."""
    code = "import sys, lrem; assert lrem.__version__; print({'torch', 'transformers', 'faiss'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
