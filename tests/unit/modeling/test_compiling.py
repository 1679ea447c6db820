"""Compiled layers: the same embeddings, log-probabilities, gradients and thoughts as without."""

import copy

import pytest
import torch
from torch._dynamo.utils import counters

from lrem.modeling.compiling import compile_layers
from lrem.modeling.encoding import EncoderOutput
from lrem.modeling.model import ReasoningEmbedder
from lrem.modeling.sequences import pad

QUERIES = ["red coat", "something warm for a long winter by the sea", "hat"]


def outputs_and_gradients(model: ReasoningEmbedder) -> tuple[list[EncoderOutput], dict[str, torch.Tensor]]:
    """Run batches of several shapes, and go back through all of them."""
    renderer, outputs = model.renderer, []
    for queries in (QUERIES, QUERIES[:1], QUERIES[1:]):
        rows = [renderer.query_ids(query, "wool, linen") for query in queries]
        spans = [(len(renderer.query_prompt(query)), len(row)) for query, row in zip(queries, rows, strict=True)]
        outputs.append(model(pad(rows, spans)))
    model.zero_grad()
    sum(output.log_probs.sum() + output.embeddings[:, 0].sum() for output in outputs).backward()
    return outputs, {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.slow  # the compiler takes half a minute
def test_compiled_layers_compute_the_same(tiny: ReasoningEmbedder) -> None:
    model = ReasoningEmbedder(copy.deepcopy(tiny.lm), tiny.tokenizer, tiny.template)
    expected, expected_gradients = outputs_and_gradients(model)
    names, thoughts = set(model.state_dict()), model.reason(QUERIES)
    counters.clear()
    compile_layers(model.lm)
    outputs, gradients = outputs_and_gradients(model)
    assert (graphs := counters["stats"]["unique_graphs"]) > 0
    for output, wanted in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output.embeddings, wanted.embeddings, atol=1e-5, rtol=0)
        torch.testing.assert_close(output.log_probs, wanted.log_probs, atol=1e-5, rtol=0)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], atol=1e-4, rtol=1e-4)
    assert set(model.state_dict()) == names
    assert model.reason(QUERIES) == thoughts
    assert counters["stats"]["unique_graphs"] == graphs  # nothing is compiled for the cache of generation
