"""What is trained through `stitch` answers as the engine that serves it, for every method, head and composition."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from make_adapters import configs_for, make_adapter
from make_bases import save_base
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2Model,
    Trainer,
    TrainingArguments,
)

from adapters_cache.build import build_adapter
from adapters_cache.formats.adapterhub import read_checkpoint
from adapters_cache.formats.setups import read_setup
from server.composition import Fuse, Leaf, Node, Stack
from server.config import ModelConfig
from server.core import Adapter, BaseInfo, Batch, Branch, Encoding, Pooling, Sample, SlotLease, Target, TokenInput
from server.errors import InvalidInput, UnsupportedConfig
from server.metrics import Metrics
from server.model.base import Base, load_base
from server.model.runner import Runner
from server.model.slots import SlotBank
from training.stitch import AdapterModel, stitch

LENGTHS = (4, 9, 7, 2)
LIKE_BERT = BaseInfo("b", "bert", 32, 2, "", 40, 70, 2, num_heads=4, intermediate_size=48)
HEADS: tuple[tuple[Mapping[str, Any], tuple[str, ...]], ...] = (
    ({"head_type": "classification"}, ("no", "yes")),
    ({"head_type": "classification", "num_labels": 1}, ()),
    ({"head_type": "multilabel_classification", "layers": 2}, ("a", "b", "c")),
    ({"head_type": "tagging"}, ("O", "B-x", "I-x")),
    ({"head_type": "question_answering"}, ()),
    ({"head_type": "masked_lm"}, ()),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def base(folder: Path) -> Base:
    return load_base(ModelConfig(base=str(folder), device="cpu"))


def batch(seed: int = 0) -> dict[str, Tensor]:
    """A padded batch as tokenizers and collators make it."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 70, (len(LENGTHS), max(LENGTHS)), generator=generator)
    mask = torch.tensor([[int(i < length) for i in range(max(LENGTHS))] for length in LENGTHS])
    return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}


def labels_for(head: Mapping[str, Any], num_labels: int) -> dict[str, Tensor]:
    size = len(LENGTHS)
    tokens = torch.randint(0, max(2, num_labels), (size, max(LENGTHS)))
    return {
        "classification": {"labels": torch.randint(0, num_labels, (size,)) if num_labels > 1 else torch.randn(size)},
        "multilabel_classification": {"labels": torch.randint(0, 2, (size, num_labels)).float()},
        "tagging": {"labels": tokens},
        "masked_lm": {"labels": tokens},
        "question_answering": {
            "start_positions": torch.tensor([0, 2, 1, 0]),
            "end_positions": torch.tensor([1, 4, 3, 1]),
        },
    }[str(head["head_type"])]


def trained(model: AdapterModel, head: Mapping[str, Any], num_labels: int, steps: int = 3) -> AdapterModel:
    """Some steps, after which nothing is as it began."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    model.train()
    torch.manual_seed(0)
    for step in range(steps):
        loss = model(**batch(step), **labels_for(head, num_labels)).loss
        assert loss is not None
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


class Lease:
    def __init__(self, adapter: Adapter, slot: int) -> None:
        self.adapter, self.slot, self.is_fresh = adapter, slot, True

    def release(self, *, failed: bool = False) -> None: ...


def served(base: Base, parts: Sequence[Adapter], node: Node, head_of: int) -> list[Tensor]:
    """What the engine answers for the rows of `batch()`."""
    inputs = batch()
    encodings = []
    for row, length in zip(inputs["input_ids"].tolist(), LENGTHS, strict=True):
        encodings.append(Encoding(tuple(row[:length]), (0,) * length, TokenInput(tuple(row[:length]))))
    target = Target("t", tuple(parts), (Branch(node, (head_of, 0)),))
    leases: dict[str, SlotLease] = {part.digest: Lease(part, i + 1) for i, part in enumerate(parts)}
    loop = asyncio.new_event_loop()
    samples = [
        Sample(encoding, target, Pooling.CLS, loop.create_future(), None, return_hidden=True) for encoding in encodings
    ]
    runner = Runner(base, SlotBank(base.device, base.dtype), Metrics())
    outcomes = runner.execute(Batch(samples, leases))
    loop.close()
    return [torch.from_numpy(outcome.values) for outcome in outcomes]  # type: ignore[union-attr]


def assert_equal(model: AdapterModel, want: Sequence[Tensor]) -> None:
    with torch.no_grad():
        out = model(**batch())
    logits = out.logits if out.logits is not None else torch.stack([out.start_logits, out.end_logits], dim=-1)
    for row, length, own in zip(logits, LENGTHS, want, strict=True):
        # prompts and prefixes of their own come before what a caller sent
        torch.testing.assert_close(
            row if own.ndim == 1 else row[:length], own[-length:] if own.ndim > 1 else own, rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("config", configs_for(LIKE_BERT), ids=str)
def test_every_method_trains_and_is_served_as_it_was_trained(
    config: str | Mapping[str, Any], folder: Path, base: Base, tmp_path: Path
) -> None:
    model = AutoModel.from_pretrained(folder)
    own = stitch(model, "task", config, head="classification", labels=("no", "yes"))
    before = {name: value.detach().clone() for name, value in own.named_parameters()}
    trained(own, {"head_type": "classification"}, 2)
    still = [name for name, value in own.named_parameters() if torch.equal(value, before[name])]
    assert all("/refts/units/" in name for name in still)  # of ReFT's two units one may have no tokens to edit
    assert len(still) < len(before)
    own.save_adapter(tmp_path / "task")
    adapter = build_adapter(read_checkpoint(tmp_path / "task"), base.info, base.dtype, weights=base)
    assert_equal(own, served(base, [adapter], Leaf(0), 0))


@pytest.mark.parametrize(("head", "labels"), HEADS, ids=lambda value: str(value))
def test_every_head_trains_and_is_served_as_it_was_trained(
    head: Mapping[str, Any], labels: tuple[str, ...], folder: Path, base: Base, tmp_path: Path
) -> None:
    own = stitch(AutoModel.from_pretrained(folder), "task", "seq_bn[reduction_factor=4]", head=head, labels=labels)
    trained(own, head, len(labels) or 1)
    own.save_adapter(tmp_path / "task")
    adapter = build_adapter(read_checkpoint(tmp_path / "task"), base.info, base.dtype, weights=base)
    assert_equal(own, served(base, [adapter], Leaf(0), 0))


def test_a_task_adapter_on_a_frozen_language_adapter(folder: Path, base: Base, tmp_path: Path) -> None:
    make_adapter(tmp_path / "de", base.info, config="seq_bn_inv[reduction_factor=4]", seed=3)
    own = stitch(
        AutoModel.from_pretrained(folder),
        "ner",
        "seq_bn[reduction_factor=4]",
        head="tagging",
        labels=("O", "B-x"),
        on=[tmp_path / "de"],
    )
    trained(own, {"head_type": "tagging"}, 2)
    own.save_adapter(tmp_path / "ner")
    parts = [build_adapter(read_checkpoint(tmp_path / name), base.info, base.dtype) for name in ("de", "ner")]
    assert_equal(own, served(base, parts, Stack((Leaf(0), Leaf(1))), 1))


def test_a_fusion_over_frozen_adapters(folder: Path, base: Base, tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        make_adapter(tmp_path / name, base.info, config="seq_bn[reduction_factor=4]", seed=seed)
    own = stitch(
        AutoModel.from_pretrained(folder),
        "both",
        "dynamic",
        head="classification",
        labels=("no", "yes"),
        fuse=[tmp_path / "a", tmp_path / "b"],
    )
    trained(own, {"head_type": "classification"}, 2)
    own.save_adapter(tmp_path / "both")
    parts = [build_adapter(read_checkpoint(tmp_path / name), base.info, base.dtype) for name in ("a", "b", "both")]
    assert_equal(own, served(base, parts, Fuse((Leaf(0), Leaf(1)), 2), 2))


def test_a_whole_composition_is_saved_as_a_setup(folder: Path, base: Base, tmp_path: Path) -> None:
    for seed, name in enumerate("ab"):
        make_adapter(tmp_path / name, base.info, config="seq_bn[reduction_factor=4]", seed=seed)
    own = stitch(
        AutoModel.from_pretrained(folder), "both", "static", head="classification", labels=("no", "yes"),
        fuse=[tmp_path / "a", tmp_path / "b"],
    )  # fmt: skip
    own.save_setup(tmp_path / "setup")
    setup = read_setup(tmp_path / "setup")
    assert setup.tree == {"type": "Fuse", "children": ["a", "b"], "name": "both"}
    assert (setup.head, set(setup.adapters), set(setup.fusions)) == ("both", {"a", "b"}, {"both"})


def test_a_language_model_with_a_prompt_answers_for_the_callers_own_tokens(folder: Path) -> None:
    own = stitch(AutoModel.from_pretrained(folder), "de", "prompt_tuning[prompt_length=3]", head="masked_lm")
    trained(own, {"head_type": "masked_lm"}, 1)
    inputs = batch()
    together = own(**inputs).logits
    assert together.shape == (*inputs["input_ids"].shape, 70)
    alone = own(input_ids=inputs["input_ids"][1:2]).logits
    torch.testing.assert_close(together[1:2], alone, rtol=1e-4, atol=1e-5)


def test_a_name_that_no_file_can_hold_is_refused_before_training(folder: Path) -> None:
    with pytest.raises(InvalidInput, match=r"adapter name 'v1\.2' is not"):
        stitch(AutoModel.from_pretrained(folder), "v1.2", head="classification", labels=("a", "b"))


def test_the_base_and_frozen_adapters_stay_as_they_are(folder: Path) -> None:
    model = AutoModel.from_pretrained(folder)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    own = trained(stitch(model, "t", head="classification", labels=("a", "b")), {"head_type": "classification"}, 2)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(key.startswith(("adapter/", "head/")) for key in own.state_dict())


def test_padding_and_neighbours_change_nothing(folder: Path) -> None:
    own = stitch(AutoModel.from_pretrained(folder), "t", head="classification", labels=("a", "b"))
    trained(own, {"head_type": "classification"}, 2)
    inputs = batch()
    with torch.no_grad():
        together = own(**inputs).logits
        alone = [
            own(input_ids=row[None, :length]).logits[0]
            for row, length in zip(inputs["input_ids"], LENGTHS, strict=True)
        ]
    torch.testing.assert_close(together, torch.stack(alone), rtol=1e-4, atol=1e-5)


class Rows(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Whether a text begins with a large token."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        ids = torch.randint(5, 70, (8,), generator=torch.Generator().manual_seed(index))
        ids[0] = 60 if index % 2 else 10
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.tensor(index % 2)}


def test_one_line_more_in_a_script_with_a_trainer(folder: Path, tmp_path: Path) -> None:
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
    model = stitch(model, "my-task", config="seq_bn[reduction_factor=4]")
    arguments = TrainingArguments(
        output_dir=str(tmp_path / "run"),
        num_train_epochs=8,
        learning_rate=1e-2,
        report_to=[],
        use_cpu=True,
        per_device_train_batch_size=16,
        disable_tqdm=True,
        save_strategy="epoch",
        dataloader_pin_memory=False,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=Rows(), eval_dataset=Rows())
    trainer.train()
    found = trainer.predict(Rows())
    assert (torch.from_numpy(found.predictions).argmax(-1) == torch.arange(64) % 2).float().mean() > 0.95
    model.save_adapter(tmp_path / "my-task")
    assert read_checkpoint(tmp_path / "my-task").head.config["labels"] == ("LABEL_0", "LABEL_1")  # type: ignore[union-attr]


def test_two_adapters_are_trained_on_one_base(folder: Path) -> None:
    model = AutoModel.from_pretrained(folder)
    one = stitch(model, "one", head="classification", labels=("a", "b"))
    two = stitch(model, "two", "lora", head="classification", labels=("a", "b"))
    trained(one, {"head_type": "classification"}, 2)
    with torch.no_grad():
        before = two(**batch()).logits
    trained(one, {"head_type": "classification"}, 2)
    with torch.no_grad():
        assert torch.equal(two(**batch()).logits, before)


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        (dict(config=None), InvalidInput, "neither an adapter nor a head"),
        (dict(config="seq_bm"), UnsupportedConfig, "seq_bm"),
        (dict(head="clasification"), UnsupportedConfig, "clasification"),
    ],
)
def test_what_does_not_fit_is_refused(
    folder: Path, arguments: dict[str, Any], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        stitch(AutoModel.from_pretrained(folder), "t", **arguments)


def test_left_padding_is_refused(folder: Path) -> None:
    own = stitch(AutoModel.from_pretrained(folder), "t", head="classification", labels=("a", "b"))
    with pytest.raises(InvalidInput, match="pad on the right"):
        own(input_ids=torch.ones(1, 4, dtype=torch.long), attention_mask=torch.tensor([[0, 1, 1, 1]]))


def test_a_model_that_is_not_served_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedConfig, match="gpt2"):
        stitch(GPT2Model(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=70)), "t", head="classification")
