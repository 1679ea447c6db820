"""The item side of a model folder for sentence-transformers: `SentenceTransformer(folder).encode(titles)`.

The template's item form becomes a chat template in that library's own configuration, so the tokenizer is unchanged.
The library itself is not imported.
"""

import json
from pathlib import Path
from typing import Any

from lrem.modeling.template import EMB, Renderer


def write(folder: Path, renderer: Renderer, dimensions: int) -> None:
    """Add the files of sentence-transformers 6 to a model folder. dimensions: H."""
    limit = len(renderer.item_ids("")) + renderer.template.max_item_tokens
    forward = {"method": "forward", "method_output_name": "last_hidden_state"}
    transformer = {
        "transformer_task": "feature-extraction",
        "modality_config": {"text": forward, "message": forward | {"format": "flat"}},  # text becomes a message
        "module_output_name": "token_embeddings",
        "processing_kwargs": {
            "chat_template": {"chat_template": _item_form(renderer), "max_length": limit, "truncation": True}
        },
    }
    base, sentence = "sentence_transformers.base.modules", "sentence_transformers.sentence_transformer.modules"
    modules = [("", f"{base}.transformer.Transformer"), ("1_Pooling", f"{sentence}.pooling.Pooling")]
    modules.append(("2_Normalize", f"{base}.normalize.Normalize"))
    listed = [{"idx": i, "name": str(i), "path": path, "type": kind} for i, (path, kind) in enumerate(modules)]
    for path, _ in modules[1:]:
        (folder / path).mkdir()
    _dump(folder / "modules.json", listed)
    _dump(folder / "sentence_bert_config.json", transformer)
    _dump(folder / "1_Pooling/config.json", {"embedding_dimension": dimensions, "pooling_mode": "lasttoken"})
    _dump(
        folder / "config_sentence_transformers.json",
        {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"},
    )


def _item_form(renderer: Renderer) -> str:
    """Return `Renderer.item_ids` in Jinja: single spaces, no control tokens in the title, `<emb>` at the end."""
    template = renderer.template
    title = "messages[-1]['content']" + "".join(f".replace({token!r}, ' ')" for token in renderer.control)
    return (
        f"{{% set title = {title}.split() | join(' ') %}}{{{{ {template.item_prefix!r} }}}}"
        f"{{{{ ' ' ~ title if title else '' }}}}{{{{ {template.item_suffix + EMB!r} }}}}"
    )


def _dump(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
