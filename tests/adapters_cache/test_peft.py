from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import make_base
from safetensors.torch import save_file

from adapters_cache import lower_peft as module
from adapters_cache.build import build_adapter
from adapters_cache.formats.adapterhub import read_checkpoint
from adapters_cache.formats.peft_fields import canonical_peft
from adapters_cache.formats.peft_targets import is_target, value_of
from adapters_cache.lower_peft import lower_peft
from server.core import BaseInfo
from server.errors import AdapterdError, MalformedCheckpoint, UnsupportedConfig, WrongBase
from server.primitives import Projection, Task

HIDDEN, LABELS = 8, 3
LORA = {"peft_type": "LORA", "task_type": None, "r": 2, "lora_alpha": 4, "target_modules": ["query"]}
LAYER = "base_model.model.bert.encoder.layer.{}."


def base(**changes: Any) -> BaseInfo:
    sizes = dict(hidden_size=HIDDEN, num_layers=2, intermediate_size=16, num_heads=2, embedding_size=HIDDEN)
    return make_base(**(sizes | changes))


def lora_tensors(module_name: str = "attention.self.query", layers: int = 2) -> dict[str, torch.Tensor]:
    return {
        f"{LAYER.format(layer)}{module_name}.lora_{side}.weight": torch.ones(shape)
        for layer in range(layers)
        for side, shape in (("A", (2, HIDDEN)), ("B", (HIDDEN, 2)))
    }


def write(path: Path, config: dict[str, Any], tensors: dict[str, torch.Tensor], as_bin: bool = False) -> Path:
    path.mkdir(exist_ok=True)
    (path / "adapter_config.json").write_text(json.dumps(config))
    if as_bin:
        torch.save(tensors, path / "adapter_model.bin")
    else:
        save_file(tensors, path / "adapter_model.safetensors")
    return path


def lower(path: Path, **changes: Any) -> Any:
    return lower_peft(read_checkpoint(path), base(**changes))[0]


@pytest.mark.parametrize("as_bin", [False, True])
def test_directory_is_read_and_named_after_its_folder(tmp_path: Path, as_bin: bool) -> None:
    checkpoint = read_checkpoint(write(tmp_path / "mine", LORA, lora_tensors(), as_bin))
    assert checkpoint.name == "mine" and checkpoint.method == "peft_lora"
    adapter = build_adapter(checkpoint, base(), torch.float32)
    assert set(adapter.spec.projections) == {(0, Projection.QUERY), (1, Projection.QUERY)}
    assert adapter.manifest.model_type == "bert" and adapter.manifest.hidden_size == HIDDEN


def test_digest_depends_on_what_changes_answers_only(tmp_path: Path) -> None:
    def digest(number: int, **changes: Any) -> str:
        path = write(tmp_path / str(number), LORA | changes, lora_tensors())
        return build_adapter(read_checkpoint(path), base(), torch.float32).digest

    plain = digest(0)
    assert digest(1, lora_dropout=0.5, peft_version="0.1", base_model_name_or_path="elsewhere") == plain
    assert digest(2, lora_alpha=5) != plain
    assert digest(3, use_rslora=True) != plain


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("peft_type", "ADALORA"),
        ("bias", "all"),
        ("init_lora_weights", "pissa"),
        ("init_lora_weights", "loftq"),
        ("layer_replication", [[0, 1]]),
        ("trainable_token_indices", [3]),
        ("alora_invocation_tokens", [1]),
        ("use_qalora", True),
        ("target_parameters", ["weight"]),
        ("task_type", "CAUSAL_LM"),
        ("r", 0),
        ("unheard_of", 1),
        ("target_modules", None),
        ("target_modules", "(a+)+b"),
        ("target_modules", "a*b*c*d*e"),
        ("target_modules", "("),
        ("rank_pattern", {"(x*)*": 3}),
    ],
)
def test_what_would_change_answers_is_refused_by_field_and_value(field: str, value: Any) -> None:
    with pytest.raises(UnsupportedConfig) as caught:
        canonical_peft(LORA | {field: value})
    shown = next(iter(value)) if isinstance(value, dict) else str(value)[:20]
    assert field in caught.value.message and shown in caught.value.message


@pytest.mark.parametrize("name", ["a.query", "query"])
def test_list_names_ends_of_names(name: str) -> None:
    config = canonical_peft(LORA)
    assert is_target(config, name) and not is_target(config, f"{name}_x") and not is_target(config, "xquery")


def test_targets_leave_out_excluded_and_saved_modules_and_other_layers() -> None:
    config = canonical_peft(
        LORA
        | {
            "target_modules": ["query", "dense"],
            "exclude_modules": ["output.dense"],
            "modules_to_save": ["classifier"],
            "layers_to_transform": 1,
        }
    )
    assert is_target(config, "encoder.layer.1.query")
    assert not is_target(config, "encoder.layer.0.query")
    assert not is_target(config, "encoder.layer.1.output.dense")
    assert not is_target(config, "classifier.dense")


def test_first_matching_pattern_counts() -> None:
    table = canonical_peft(LORA | {"rank_pattern": {r"layer\.1\..*query": 4, "query": 3}})["rank_pattern"]
    assert value_of(table, "encoder.layer.1.self.query", 2) == 4
    assert value_of(table, "encoder.layer.0.self.query", 2) == 3
    assert value_of(table, "encoder.layer.0.self.key", 2) == 2


def test_accepted_pattern_is_cheap_on_every_name() -> None:
    config = canonical_peft(LORA | {"target_modules": ".*a.*a.*b"})
    start = time.perf_counter()
    assert not is_target(config, "a" * 120)
    assert time.perf_counter() - start < 5  # an exponential one would take years


@pytest.mark.parametrize(
    ("error", "tensors", "changes"),
    [
        (MalformedCheckpoint, lora_tensors(layers=1), {}),  # the second layer's are missing
        (MalformedCheckpoint, lora_tensors() | lora_tensors("attention.self.key"), {}),  # not a target
        (
            UnsupportedConfig,
            lora_tensors() | {"base_model.model.bert.pooler.dense.lora_A.weight": torch.ones(2, 8)},
            {},
        ),
        (MalformedCheckpoint, lora_tensors() | {"base_model.model.classifier.weight": torch.ones(2, 8)}, {}),
        (MalformedCheckpoint, lora_tensors(), {"hidden_size": 12}),
        (WrongBase, lora_tensors(), {"model_type": "roberta"}),
        (WrongBase, lora_tensors(), {"model_type": "distilbert"}),
    ],
)
def test_tensors_are_exactly_those_of_the_configuration(
    tmp_path: Path, error: type[AdapterdError], tensors: dict[str, torch.Tensor], changes: dict[str, Any]
) -> None:
    with pytest.raises(error):
        lower(write(tmp_path / "a", LORA, tensors), **changes)


def test_head_needs_all_its_layers(tmp_path: Path) -> None:
    head = {
        "base_model.model.classifier.weight": torch.ones(LABELS, HIDDEN),
        "base_model.model.classifier.bias": torch.ones(LABELS),
    }
    config = LORA | {"task_type": "SEQ_CLS", "modules_to_save": ["classifier", "score"]}
    spec = lower(write(tmp_path / "bert", config, lora_tensors() | head))
    assert spec.head.use_pooler and spec.task is Task.CLASSIFICATION and len(spec.head.labels) == LABELS
    renamed = {key.replace(".bert.", ".deberta."): tensor for key, tensor in (lora_tensors() | head).items()}
    renamed = {key.replace("query", "query_proj"): tensor for key, tensor in renamed.items()}
    deberta = write(tmp_path / "deberta", config | {"target_modules": ["query_proj"]}, renamed)
    with pytest.raises(MalformedCheckpoint, match="pooler.dense.weight is missing.*modules_to_save"):
        lower(deberta, model_type="deberta-v2")
    with pytest.raises(MalformedCheckpoint, match="classifier.weight is missing"):
        lower(write(tmp_path / "none", config, lora_tensors()))


def test_what_peft_cannot_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UNSERVED", frozenset())
    sizes = {"num_virtual_tokens": 2, "token_dim": HIDDEN, "num_layers": 2, "num_attention_heads": 2}
    tensors = {"prompt_embeddings": torch.ones(2, 4 * HIDDEN)}
    path = write(tmp_path / "prefix", {"peft_type": "PREFIX_TUNING", "task_type": None} | sizes, tensors)
    with pytest.raises(UnsupportedConfig, match="albert"):
        lower(path, model_type="albert")
    with pytest.raises(WrongBase, match="num_layers 2"):
        lower(path, num_layers=3)


def test_nothing_that_the_engine_lacks_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = LORA | {"target_modules": ["attention.output.dense"]}
    path = write(tmp_path / "a", config, lora_tensors("attention.output.dense"))
    monkeypatch.setattr(module, "UNSERVED", frozenset(("attention_output",)))
    with pytest.raises(UnsupportedConfig, match="not served yet"):
        lower(path)
    monkeypatch.setattr(module, "UNSERVED", frozenset())
    assert (0, Projection.ATTENTION_OUTPUT) in lower(path).projections
