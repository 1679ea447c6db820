"""The peers of stage 1: the trainers of sentence-transformers and of transformers, on the weights and rows of ours."""

import argparse
import tempfile
from typing import Any

from paired_runner import STEPS_ALONE, in_turn

TAU, CHUNK_TOKENS = 0.03, 2048
FROZEN = 18  # lower layers of a pretrained model that are not trained


def freeze(model: Any) -> None:
    """Freeze the embeddings, with the tied head, and the lower layers of the peer's transformers model."""
    for module in (model.get_input_embeddings(), *model.base_model.layers[:FROZEN]):
        module.requires_grad_(False)


def arguments_of(kind: Any, given: argparse.Namespace, **more: Any) -> Any:
    """Return arguments for either of the peer's trainers: one batch per epoch, without saving or logging."""
    return kind(
        bf16=bool(given.source),
        torch_compile=given.compile,
        output_dir=tempfile.mkdtemp(),
        num_train_epochs=1000,
        learning_rate=1e-4,
        warmup_steps=1,
        remove_unused_columns=False,
        **STEPS_ALONE,
        **more,
    )


def peer_contrast(given: argparse.Namespace, rows: list[dict[str, Any]], how: str) -> None:
    """Run the contrastive trainer: `how` is uncached, packed, or the rows of a mini-batch."""
    import torch
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformer,
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import (
        CachedMultipleNegativesRankingLoss,
        MultipleNegativesRankingLoss,
    )

    model = SentenceTransformer(
        str(given.folder / "model"), device="cpu", model_kwargs={"attn_implementation": "eager"}
    )
    if given.source:
        freeze(model[0].model)
    if how == "uncached":
        loss = MultipleNegativesRankingLoss(model, scale=1 / TAU)
    elif how == "packed":
        loss = CachedMultipleNegativesRankingLoss(model, scale=1 / TAU, mini_batch_num_tokens=CHUNK_TOKENS)
    else:
        loss = CachedMultipleNegativesRankingLoss(model, scale=1 / TAU, mini_batch_size=int(how))

    def collator(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        features = {}
        for column, name in (("query_ids", "anchor"), ("item_ids", "positive")):
            ids, mask = padded([row[column] for row in batch])
            features |= {f"{name}_input_ids": ids, f"{name}_attention_mask": mask}
        return features

    collator.valid_label_columns = []  # type: ignore[attr-defined]
    data = Dataset.from_list([{name: row[name] for name in ("query_ids", "item_ids")} for row in rows])
    trainer = SentenceTransformerTrainer(
        model=model,
        args=arguments_of(SentenceTransformerTrainingArguments, given, per_device_train_batch_size=len(rows)),
        train_dataset=data,
        loss=loss,
        data_collator=collator,
        callbacks=[in_turn()],
    )
    trainer.train()


def peer_sft(given: argparse.Namespace, rows: list[dict[str, Any]], mini: int) -> None:
    """Run the SFT trainer with mini-batches of `mini` rows."""
    import torch
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    def collator(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        ids, mask = padded([row["query_ids"] for row in batch])
        labels = ids.clone()
        for i, row in enumerate(batch):
            labels[i, : row["start"]] = -100
            labels[i, len(row["query_ids"]) :] = -100
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}

    more = {"per_device_train_batch_size": mini, "gradient_accumulation_steps": len(rows) // mini}
    more |= {"train_sampling_strategy": "group_by_length"}
    model = AutoModelForCausalLM.from_pretrained(
        given.folder / "model", dtype=torch.float32, attn_implementation="eager"
    )
    if given.source:
        freeze(model)
    trainer = Trainer(
        model=model,
        args=arguments_of(TrainingArguments, given, **more),
        train_dataset=Dataset.from_list(
            [{"query_ids": row["query_ids"], "start": row["start"], "length": len(row["query_ids"])} for row in rows]
        ),
        data_collator=collator,
        callbacks=[in_turn()],
    )
    trainer.train()


def padded(rows: list[list[int]]) -> tuple[Any, Any]:
    """Return right-padded ids and attention mask, [B, L] each."""
    import torch

    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
