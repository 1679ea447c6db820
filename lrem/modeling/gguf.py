"""A GGUF file as a plain Hugging Face folder: dequantised, tied where the model ties, checked by a sentence's loss."""

import json
from pathlib import Path

import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from lrem.config.model import pretrained_source
from lrem.data.files import atomic_folder, sha256
from lrem.errors import DataError

RECORD = "lrem_source.json"
SENTENCE = "The children went to school in the morning and came home in the afternoon to eat dinner with their parents."
# Nats a token: between models that were read correctly (below 3) and wrongly (above 5, such as Gemma without BOS).
MAX_LOSS = 4.5


def convert_gguf(file: Path, folder: Path, max_loss: float = MAX_LOSS) -> Path:
    """Write the model of a GGUF file into `folder`, unless the folder already holds it; return the folder.

    Weights are written in float32, as the file's dequantised values.

    Args:
        max_loss: the mean loss of SENTENCE, in nats a token, above which the conversion counts as failed.

    Raises:
        DataError: the file is missing or cannot be read, or the converted model does not know English.
    """
    if not file.is_file():
        raise DataError(f"model.source={file}: no such file")
    source = {"file": file.name, "sha256": sha256(file)}
    if (folder / RECORD).exists() and json.loads((folder / RECORD).read_text(encoding="utf-8")) == source:
        return folder
    name, arguments = pretrained_source(str(file))
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, **arguments)
        _keep_habits(tokenizer, file)
        lm = _without_quantization(AutoModelForCausalLM.from_pretrained(name, dtype=torch.float32, **arguments))
    except (ImportError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise DataError(f"model.source={file} cannot be converted ({error}): pass a Hugging Face folder") from error
    loss = sentence_loss(lm, tokenizer)
    if not loss <= max_loss:  # a NaN fails too
        raise DataError(
            f"model.source={file}: the converted model's loss on a plain English sentence is {loss:.2f} nats a token, "
            f"above {max_loss:g}: the file's family or tokenizer is not read correctly; pass a Hugging Face folder"
        )
    with atomic_folder(folder) as part:
        lm.save_pretrained(part)
        tokenizer.save_pretrained(part)
        (part / RECORD).write_text(json.dumps(source, indent=2) + "\n", encoding="utf-8")
    return folder


@torch.inference_mode()
def sentence_loss(lm: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> float:
    """Return the mean loss of SENTENCE in nats a token, tokenised as the tokenizer does by itself."""
    ids = torch.tensor([tokenizer.encode(SENTENCE)], device=lm.device)
    return float(lm(ids, labels=ids).loss)


def _without_quantization(lm: PreTrainedModel) -> PreTrainedModel:
    """Return the same weights in a fresh model: `save_pretrained` refuses one that was loaded quantised."""
    settings = lm.config.to_dict()
    settings.pop("quantization_config", None)
    plain: PreTrainedModel = type(lm)(type(lm.config).from_dict(settings)).eval()
    state = lm.state_dict()
    tied = {"lm_head.weight"} if lm.config.tie_word_embeddings else set()
    for name in tied:  # a loaded head that came untied must not overwrite the embeddings
        state.pop(name, None)
    missing, unexpected = plain.load_state_dict(state, strict=False)
    if {*missing} - tied or unexpected:
        raise ValueError(f"tensors missing: {missing}, unknown: {unexpected}")
    plain.generation_config = lm.generation_config
    return plain


def _keep_habits(tokenizer: PreTrainedTokenizerBase, file: Path) -> None:
    """Make the tokenizer begin and end texts with BOS and EOS as the file says; transformers does not read this."""
    from gguf import GGUFReader

    reader = GGUFReader(file)
    fields = [reader.get_field(f"tokenizer.ggml.add_{name}_token") for name in ("bos", "eos")]
    if fields == [None, None]:
        return
    adds_bos, adds_eos = (field is not None and bool(field.contents()) for field in fields)
    single = [tokenizer.bos_token] * adds_bos + ["$A"] + [tokenizer.eos_token] * adds_eos
    special = {token: tokenizer.convert_tokens_to_ids(token) for token in single if token != "$A"}
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=single, pair=[*single, *(part.replace("$A", "$B") for part in single)], special_tokens=[*special.items()]
    )
