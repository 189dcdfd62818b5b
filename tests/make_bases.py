"""Small random base models, made on the spot."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel, XLMRobertaConfig, XLMRobertaModel

SHAPE = dict(
    vocab_size=70,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=48,
    max_position_embeddings=40,
)
MODELS = {
    "bert": (BertModel, BertConfig(**SHAPE)),
    "roberta": (RobertaModel, RobertaConfig(**SHAPE, type_vocab_size=1)),
    "xlm-roberta": (XLMRobertaModel, XLMRobertaConfig(**SHAPE, type_vocab_size=1)),
}


def save_base(path: Path, model_type: str = "bert", seed: int = 0) -> Path:
    torch.manual_seed(seed)
    model_class, config = MODELS[model_type]
    model_class(config).save_pretrained(path)
    return path


def save_lively_base(path: Path) -> Path:
    """One whose first token tells of the others: with weights as small as they are at first, it hardly does."""
    model = BertModel.from_pretrained(save_base(path))
    with torch.no_grad():
        for parameter in model.encoder.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    model.save_pretrained(path)
    return path
