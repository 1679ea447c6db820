"""bfloat16 arithmetic on float32 weights: near float32, with float32 gradients; and the measurement that chooses."""

from pathlib import Path

import pytest
import torch

from lrem.config import ReinforceConfig
from lrem.modeling import autocast
from lrem.modeling.autocast import full_precision, has_bfloat16_units, measure_speedup
from lrem.modeling.model import ReasoningEmbedder
from lrem.modeling.sequences import pad
from tests.unit.training.cold_start_batch import make_batch


def test_autocast_rounds_and_keeps_the_weights(embedder_folder: Path) -> None:
    model = ReasoningEmbedder.load(embedder_folder)
    batch = make_batch(model)
    rows = pad(batch.queries, batch.scored_spans)
    exact = model(rows)
    model.autocast = True
    rounded = model(rows)
    assert 1e-6 < (rounded.embeddings - exact.embeddings).abs().max() < 0.05
    assert (rounded.log_probs - exact.log_probs).abs().max() < 0.2
    assert rounded.embeddings.dtype == rounded.log_probs.dtype == torch.float32
    rounded.log_probs.sum().backward()
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}
    with full_precision(model):
        assert torch.equal(model(rows).embeddings, exact.embeddings)
    assert model.autocast


def test_the_measurement_leaves_the_model_as_it_was(tiny: ReasoningEmbedder, monkeypatch: pytest.MonkeyPatch) -> None:
    state = torch.get_rng_state()
    speedup = measure_speedup(tiny)
    assert speedup > 0
    assert has_bfloat16_units() or speedup == 1.0
    assert torch.equal(torch.get_rng_state(), state)
    assert not tiny.autocast
    monkeypatch.setattr(autocast, "UNITS", ())  # a CPU without any
    assert measure_speedup(tiny) == 1.0


def test_float32_weights_and_bfloat16_weights_exclude_each_other() -> None:
    with pytest.raises(ValueError, match="optim.bf16"):
        ReinforceConfig.model_validate({"autocast": "auto", "optim": {"bf16": True}})
