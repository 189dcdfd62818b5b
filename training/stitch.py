"""A frozen base with one adapter in training, as a module that any training loop takes.

The forward pass is the one that serves: padded batches are packed, go through the stitched base, and are padded again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from adapters_cache.formats.adapterhub import VERSION, check_file_name, read_checkpoint, write_checkpoint
from adapters_cache.formats.checkpoint import FUSION, Checkpoint, HeadCheckpoint
from adapters_cache.formats.configs import canonical_config
from adapters_cache.formats.heads import LANGUAGE_MODELS
from adapters_cache.formats.setups import write_setup
from adapters_cache.lowering import lower
from server.composition import Fuse, Leaf, Node, Stack
from server.config import ModelConfig
from server.core import Encoding, TokenInput
from server.errors import InvalidInput
from server.model.base import Base, load_base, stitch_base
from server.model.heads import run_head
from server.model.phases import to_device
from server.model.rows import plan_alike
from server.model.weights import HeadWeights, SlotWeights, view
from server.primitives import Task
from training.losses import loss_of, span_loss
from training.parameters import new_checkpoint, new_fusion, new_head

TRAINED = 1  # its slot; adapters that are frozen come after it
FUSION_REGULARIZATION = 0.01  # weight of the distance of a fusion's values to the identity, as in the library
NOWHERE = -1e4  # score of padding as the first or last token of an answer
SIGNED = "parametrizations.weight.original"
STITCHED = "adapterd_base"  # attribute of an encoder that is stitched already
Source = Path | str | Checkpoint
# What a plain model class with a head stands for.
HEAD_OF_CLASS: Mapping[str, str] = {
    "ForSequenceClassification": "classification",
    "ForTokenClassification": "tagging",
    "ForQuestionAnswering": "question_answering",
    "ForMultipleChoice": "multiple_choice",
    "ForMaskedLM": "masked_lm",
}


@dataclass
class AdapterOutput(ModelOutput):
    """loss where labels were given; logits [B, C] or [B, T, C]; of question answering start and end scores [B, T]."""

    loss: Tensor | None = None
    logits: Tensor | None = None
    start_logits: Tensor | None = None
    end_logits: Tensor | None = None


def stitch(
    model: PreTrainedModel | str | Path | Base,
    name: str,
    config: str | Mapping[str, Any] | None = "seq_bn",
    *,
    head: str | Mapping[str, Any] | None = None,
    labels: Sequence[str] = (),
    on: Sequence[Source] = (),
    fuse: Sequence[Source] = (),
    seed: int = 0,
) -> AdapterModel:
    """Freeze a base and give it one new adapter to train.

        model = AutoModelForSequenceClassification.from_pretrained("bert-base-uncased", num_labels=3)
        model = stitch(model, "my-task", config="seq_bn")   # the only new line
        Trainer(model, ...).train()
        model.save_adapter("adapters/my-task")

    model    a `transformers` encoder, with or without a head of its own; or its name or folder
    config   the method: a name or configuration string of AdapterHub's library ("lora[r=4]", "mam"), an object with its
             fields, or None for a head alone; with `fuse` "dynamic" or "static"
    head     type ("classification", "tagging", ...) or an object with the library's fields; None takes it from the
             class of `model`, and is an adapter without a head for a plain encoder
    labels   names in the order of their ids; without them those of `model.config.id2label`
    on       adapters that stay as they are, below the new one: a language adapter, say (MAD-X)
    fuse     adapters that stay as they are and are fused; what is trained is the fusion (AdapterFusion)
    Raises UnsupportedConfig, WrongBase, MalformedCheckpoint, InvalidInput.
    """
    check_file_name(name)
    base = _base_of(model)
    frozen = [_read(source) for source in (*on, *fuse)]
    if on and fuse:
        raise InvalidInput("an adapter is trained on top of others (on) or as their fusion (fuse), not both")
    own_head = _new_head(model, name, base, head, labels, seed)
    if fuse:
        how = "dynamic" if config in (None, "seq_bn") else config
        return AdapterModel(base, new_fusion(name, base.info, frozen, own_head, seed, how), frozen)
    own = None if config is None else canonical_config({"config": config, "version": VERSION}, has_invertible=True)
    if own is None and own_head is None:
        raise InvalidInput(f"{name!r} has neither an adapter nor a head to train: give config, head or both")
    return AdapterModel(base, new_checkpoint(name, base.info, own, own_head, seed, base), frozen)


class AdapterModel(nn.Module):
    """What is trained of a base: the tensors of one checkpoint. The base and other adapters are not among its modules.

    frozen   adapters below it, or the members of a fusion
    """

    def __init__(self, base: Base, checkpoint: Checkpoint, frozen: Sequence[Checkpoint] = ()) -> None:
        super().__init__()
        # not a submodule: neither optimizers, nor checkpoints, nor train() are to see the base
        object.__setattr__(self, "base", base)
        self.base: Base
        self.config = base.model.config
        self._members = tuple(frozen)
        self._frozen = [self._viewed(other) for other in frozen]
        self._checkpoint = self._registered(checkpoint)
        leaves = tuple(Leaf(TRAINED + 1 + i) for i in range(len(frozen)))
        self._node = _node(checkpoint, leaves)
        self._has_head = checkpoint.head is not None

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
    ) -> AdapterOutput:
        """As a `transformers` model: input_ids [B, T], of multiple choice [B, C, T], padding on the right.

        labels   [B], [B, C] of several labels, [B, T] of tokens with -100 where there is none
        Raises InvalidInput for an adapter without a head, and for padding on the left.
        """
        if not self._has_head:
            raise InvalidInput("this adapter has no head, so there is nothing to train it with: stitch(..., head=...)")
        shape = input_ids.shape
        encodings = _encodings(*(_rows(x) for x in (input_ids, attention_mask, token_type_ids)))
        weights = self._weights()
        [head] = weights.heads
        nowhere = NOWHERE if head.head.task is Task.QUESTION_ANSWERING else 0.0
        logits = self._padded(self._logits(weights, head, encodings), shape, nowhere)
        loss = self._loss(head, logits, labels, start_positions, end_positions)
        if head.head.task is Task.QUESTION_ANSWERING:
            return AdapterOutput(loss, None, logits[..., 0], logits[..., 1])
        return AdapterOutput(loss, logits)

    def logits(self, encodings: Sequence[Encoding]) -> list[Tensor]:
        """[C], or [T, C], of each input: the same without padding."""
        weights = self._weights()
        [head] = weights.heads
        return self._logits(weights, head, encodings)

    def snapshot(self) -> Checkpoint:
        """A detached copy on the host of what is trained, as it stands."""
        self._restore_signs()
        checkpoint = self._checkpoint
        head = checkpoint.head
        head = replace(head, tensors=_copied(head.tensors)) if head is not None else None
        return replace(checkpoint, tensors=_copied(checkpoint.tensors), head=head)

    def save_adapter(self, path: Path | str, dtype: torch.dtype | None = None) -> None:
        """Write what was trained, with its head, in AdapterHub's layout, which its library loads too.

        dtype   what to store the weights as; by default as they are
        """
        write_checkpoint(Path(path), self.snapshot(), self.base.info, dtype)

    def save_setup(self, path: Path | str, dtype: torch.dtype | None = None) -> None:
        """Write the whole composition, frozen adapters included, as AdapterHub's library saves a setup.

        A server that finds the folder among its adapters serves it under the folder's name.
        """
        own, folder = self.snapshot(), Path(path)
        for part in (*self._members, own):
            write_checkpoint(folder / part.name, part, self.base.info, dtype)
        names = [part.name for part in self._members]
        is_fusion = (own.config or {}).get("architecture") == FUSION
        path_of_names = [*names, own.name] if own.config is not None else names
        tree = (
            {"type": "Fuse", "children": names, "name": own.name}
            if is_fusion
            else {"type": "Stack", "children": path_of_names}
        )
        write_setup(folder, tree, own.head.name if own.head else None)

    def _registered(self, checkpoint: Checkpoint) -> Checkpoint:
        """The checkpoint with its tensors as parameters of this module."""
        tensors = self._register("adapter", checkpoint.tensors)
        head = checkpoint.head
        if head is not None:
            head = replace(head, tensors=self._register("head", head.tensors))
        return replace(checkpoint, tensors=tensors, head=head)

    def _register(self, prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        own: dict[str, Tensor] = {}
        for key, tensor in tensors.items():
            own[key] = tensor
            if tensor.requires_grad:
                parameter = nn.Parameter(tensor.detach().to(self.base.device))
                self.register_parameter(f"{prefix}/{key.replace('.', '/')}", parameter)
                own[key] = parameter
        return own

    def _viewed(self, checkpoint: Checkpoint) -> SlotWeights:
        """The weights as the engine sees them; gradients flow back into tensors that want them."""
        spec, tensors = lower(checkpoint, self.base.info, self.base)
        offsets = accumulate((tensor.numel() for tensor in tensors), initial=0)
        # apart from each other: views of one buffer would each fill a gradient as long as the buffer
        places = zip(offsets, tensors, strict=False)
        parts = {at: own.to(self.base.device, self.base.dtype) for at, own in places if own.numel()}
        return view(spec, parts)

    def _weights(self) -> SlotWeights:
        self._restore_signs()
        return self._viewed(self._checkpoint)

    @torch.no_grad()
    def _restore_signs(self) -> None:
        """What an orthogonal projection keeps on its diagonal are signs; weight decay makes them zero."""
        for key, tensor in self._checkpoint.tensors.items():
            if key.endswith(SIGNED):
                tensor.diagonal().sign_()

    def _logits(self, weights: SlotWeights, head: HeadWeights, encodings: Sequence[Encoding]) -> list[Tensor]:
        slots = {TRAINED: weights, **{TRAINED + 1 + i: own for i, own in enumerate(self._frozen)}}
        way = plan_alike(encodings, self._node, slots, self.base.info.num_layers, self.base.packer)
        try:
            hidden = self.base.forward(to_device(way.phases, self.base.device))
        finally:
            self.base.stitching.end()
        order = sorted(range(len(encodings)), key=lambda i: way.spans[i, 0])
        rows = [replace(way.head_row((i, 0)), is_whole=head.head.task is Task.FILL_MASK) for i in order]
        answers = run_head(head, hidden, rows, self.base.heads, self.base.stitching.kernels.uncouple)
        found = dict(zip(order, answers, strict=True))
        logits = [found[i][0] for i in range(len(encodings))]
        start, end = rows[0].prompt
        # what a prompt says at its own tokens has no labels
        is_whole = head.head.task is Task.FILL_MASK and end > start
        return [torch.cat([own[:start], own[end:]]) for own in logits] if is_whole else logits

    def _padded(self, logits: Sequence[Tensor], shape: torch.Size, value: float) -> Tensor:
        if logits[0].ndim == 1:
            rows = torch.stack(list(logits))
            return rows.view(shape[0], -1) if len(shape) == 3 else rows
        padded = nn.utils.rnn.pad_sequence(list(logits), batch_first=True, padding_value=value)
        return nn.functional.pad(padded, (0, 0, 0, shape[-1] - padded.shape[1]), value=value)

    def _loss(
        self, head: HeadWeights, logits: Tensor, labels: Tensor | None, starts: Tensor | None, ends: Tensor | None
    ) -> Tensor | None:
        if head.head.task is Task.QUESTION_ANSWERING:
            if starts is None or ends is None:
                return None
            loss = span_loss(logits.float(), starts.to(logits.device), ends.to(logits.device))
        elif labels is None:
            return None
        else:
            loss = loss_of(head.head.task, logits, labels.to(logits.device))
        return loss + self._regularization() if self.training else loss

    def _regularization(self) -> Tensor | float:
        """Keeps a fusion's values near the identity (Pfeiffer et al. 2021, section 3.2)."""
        config = self._checkpoint.config or {}
        if config.get("architecture") != FUSION:
            return 0.0
        values = [tensor for key, tensor in self._checkpoint.tensors.items() if key.endswith("value.weight")]
        return FUSION_REGULARIZATION * sum((torch.eye(*v.shape, device=v.device) - v).pow(2).sum() for v in values)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> AdapterModel:
        """Loops that move a model to their device move parameters only: the base has to be there before."""
        result: AdapterModel = super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if any(parameter.device != self.base.device for parameter in self.parameters()):
            raise InvalidInput(
                f"the base lies on {self.base.device}: move it before you stitch it, model.to(device) and then stitch()"
            )
        return result


def _base_of(model: PreTrainedModel | str | Path | Base) -> Base:
    if isinstance(model, Base):
        return model
    if isinstance(model, (str, Path)):
        return load_base(ModelConfig(base=str(model), dtype="float32", backend="eager"))
    encoder = model.base_model
    base: Base | None = getattr(encoder, STITCHED, None)
    if base is None:
        base = _whole(model) if encoder is not model and model.config.name_or_path else _in_place(encoder)
        object.__setattr__(encoder, STITCHED, base)
    return base


def _in_place(encoder: Any) -> Base:
    if torch.cuda.is_available():  # where loops bring it anyway
        encoder = encoder.to("cuda")
    return stitch_base(encoder, ModelConfig(backend="eager"))


def _whole(model: Any) -> Base:
    """The base that a class with a head was loaded from: such a class may leave parts of it out, a pooler say.

    Raises InvalidInput where the class's own copy has other weights by now.
    """
    name, dtype = model.config.name_or_path, str(model.dtype).removeprefix("torch.")
    base = load_base(ModelConfig(base=name, dtype=dtype, backend="eager"))
    theirs = base.model.state_dict()
    for key, tensor in model.base_model.state_dict().items():
        if key not in theirs or not torch.equal(tensor.cpu(), theirs[key].cpu()):
            raise InvalidInput(f"{key} is not as in {name}; save the changed base with save_pretrained and load that")
    return base


def _new_head(
    model: Any, name: str, base: Base, head: str | Mapping[str, Any] | None, labels: Sequence[str], seed: int
) -> HeadCheckpoint | None:
    named = type(model).__name__
    head_type = next((kind for suffix, kind in HEAD_OF_CLASS.items() if named.endswith(suffix)), None)
    if head is None and head_type is None:
        return None
    options = dict(head) if isinstance(head, Mapping) else {"head_type": head or head_type}
    kind = str(options.pop("head_type", None) or head_type)
    if kind == "classification" and getattr(model, "config", None) is not None:
        is_multi = getattr(model.config, "problem_type", None) == "multi_label_classification"
        kind = "multilabel_classification" if is_multi and head is None else kind
    if not labels and head_type is not None and kind not in LANGUAGE_MODELS | {"question_answering", "multiple_choice"}:
        id2label = model.config.id2label
        labels = [str(id2label[i]) for i in range(len(id2label))]
    return new_head(name, base.info, kind, labels, seed, options=options, weights=base)


def _read(source: Source) -> Checkpoint:
    checkpoint = source if isinstance(source, Checkpoint) else read_checkpoint(Path(source))
    return replace(checkpoint, head=None, other_heads=())


def _node(checkpoint: Checkpoint, frozen: tuple[Leaf, ...]) -> Node | None:
    if (checkpoint.config or {}).get("architecture") == FUSION:
        return Fuse(frozen, TRAINED)
    own = (Leaf(TRAINED),) if checkpoint.config is not None else ()
    path = (*frozen, *own)
    return None if not path else path[0] if len(path) == 1 else Stack(path)


def _rows(x: Tensor | None) -> Tensor | None:
    """[B, C, T] as [B * C, T]"""
    return None if x is None else x.reshape(-1, x.shape[-1])


def _encodings(ids: Tensor | None, mask: Tensor | None, types: Tensor | None) -> list[Encoding]:
    """One per row, without its padding."""
    assert ids is not None
    lengths = [ids.shape[1]] * len(ids) if mask is None else mask.sum(dim=1).tolist()
    if mask is not None and not bool((mask[:, :-1] >= mask[:, 1:]).all()):
        raise InvalidInput("attention_mask has holes or begins with padding; pad on the right")
    found = []
    for i, (row, length) in enumerate(zip(ids.tolist(), lengths, strict=True)):
        own = tuple(row[:length])
        kinds = tuple(types[i, :length].tolist()) if types is not None else (0,) * length
        found.append(Encoding(own, kinds, TokenInput(own, kinds)))
    return found


def _copied(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.detach().to("cpu", copy=True) for key, tensor in tensors.items()}
