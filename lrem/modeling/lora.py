"""Low-rank adapters with peft: added to a model in place, saved on their own and merged."""

from pathlib import Path

import peft
from torch import Tensor
from transformers import PreTrainedModel

from lrem.config import LoraConfig
from lrem.modeling.model import ReasoningEmbedder
from lrem.modeling.template import CLOSE, EMB, THINK

FOLDER = "adapter"


def add_lora(model: ReasoningEmbedder, lora: LoraConfig) -> peft.PeftModel:
    """Freeze the model and add trainable adapters; `<think>`, `</think>` and `<emb>` stay trainable too.

    The model is changed in place. The returned wrapper shares its weights, and can save or merge the adapters.

    Raises:
        ValueError: `lora.targets` names no module of this model.
    """
    return adapt(model.lm, lora, model.tokenizer.convert_tokens_to_ids([THINK, CLOSE, EMB]))


def adapt(lm: PreTrainedModel, lora: LoraConfig, tokens: list[int]) -> peft.PeftModel:
    """Add adapters to a language model. tokens: ids whose embeddings stay trainable."""
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.targets,
        trainable_token_indices=tokens,
    )
    return peft.get_peft_model(lm, settings)


def split_state(start: Path, lora: LoraConfig, state: dict[str, Tensor], folder: Path, base: str) -> dict[str, Tensor]:
    """Write the adapters of a trained `state` into folder/adapter, and return the merged weights.

    Args:
        start: the model folder that training began with. state: the trained `lm`'s, with adapters.
        base: name or folder of the base model, recorded with the adapters.
    """
    model = ReasoningEmbedder.load(start)
    wrapped = add_lora(model, lora)
    model.lm.load_state_dict(state)
    wrapped.peft_config["default"].base_model_name_or_path = base
    wrapped.save_pretrained(str(folder / FOLDER))
    model.tokenizer.save_pretrained(str(folder / FOLDER))
    merged: dict[str, Tensor] = wrapped.merge_and_unload().state_dict()
    return merged
