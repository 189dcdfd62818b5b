"""Record what PEFT answers, on the bases and inputs that adapterhub.py made. See README.md."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

# The folder of this file comes first on the path, and the library has the same name.
sys.path.append(sys.path.pop(0))

import peft
import torch
import transformers
from cases import NOISE, ROOT, distance, row, write_case, write_manifest
from peft import IA3Config, LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file
from torch import Tensor

HEADS = {
    "SEQ_CLS": transformers.AutoModelForSequenceClassification,
    "TOKEN_CLS": transformers.AutoModelForTokenClassification,
    "QUESTION_ANS": transformers.AutoModelForQuestionAnswering,
    "FEATURE_EXTRACTION": transformers.AutoModel,
}
ALL_BERT = ["query", "key", "value", "intermediate.dense", "output.dense"]


@dataclass
class Case:
    base: str
    name: str
    method: str
    task: str
    config: Any
    arguments: Mapping[str, Any] = field(default_factory=dict)
    num_labels: int = 3
    as_bin: bool = False


def _cases() -> list[Case]:
    """Question answering only where there are no token types: the library's wrapper forgets to pass them on."""
    cases = []
    for base in ("bert", "roberta"):
        cases += [
            Case(
                base, "lora", "lora", "SEQ_CLS", LoraConfig, dict(r=3, lora_alpha=7, target_modules=["query", "value"])
            ),
            Case(
                base,
                "lora_patterns",
                "lora",
                "TOKEN_CLS",
                LoraConfig,
                dict(
                    r=2,
                    lora_alpha=5,
                    use_rslora=True,
                    target_modules=r".*layer\.\d+\.(attention\.self\.(query|key)|intermediate\.dense|output\.dense)",
                    rank_pattern={"query": 4, r".*1\.output\.dense": 3},
                    alpha_pattern={"intermediate.dense": 9},
                ),
            ),
            Case(
                base,
                "lora_bias",
                "lora",
                "QUESTION_ANS" if base == "roberta" else "TOKEN_CLS",
                LoraConfig,
                dict(r=2, target_modules=["value"], lora_bias=True, layers_to_transform=[1]),
                num_labels=2,
                as_bin=True,
            ),
            Case(base, "lora_bare", "lora", "FEATURE_EXTRACTION", LoraConfig, dict(r=2, target_modules=ALL_BERT)),
            Case(
                base,
                "dora",
                "dora",
                "SEQ_CLS",
                LoraConfig,
                dict(r=2, lora_alpha=6, use_dora=True, target_modules=ALL_BERT),
            ),
            Case(
                base,
                "ia3",
                "ia3",
                "SEQ_CLS",
                IA3Config,
                dict(feedforward_modules=["output.dense"], target_modules=["key", "value", "output.dense"]),
            ),
            Case(
                base,
                "ia3_attention",
                "ia3",
                "TOKEN_CLS",
                IA3Config,
                dict(feedforward_modules=[], target_modules=["key", "value", "intermediate.dense"]),
            ),
            Case(base, "prefix", "prefix_tuning", "SEQ_CLS", PrefixTuningConfig, dict(num_virtual_tokens=4)),
            Case(
                base,
                "prefix_projection",
                "prefix_tuning",
                "TOKEN_CLS",
                PrefixTuningConfig,
                dict(num_virtual_tokens=3, prefix_projection=True, encoder_hidden_size=8),
            ),
            Case(base, "prompt", "prompt_tuning", "SEQ_CLS", PromptTuningConfig, dict(num_virtual_tokens=4)),
            Case(base, "prompt_tokens", "prompt_tuning", "TOKEN_CLS", PromptTuningConfig, dict(num_virtual_tokens=2)),
        ]
    trained_pooler = dict(r=2, target_modules=["key"], modules_to_save=["pooler"])
    all_linear = dict(r=2, target_modules="all-linear")
    cases += [
        Case("roberta", "lora_all_linear", "lora", "SEQ_CLS", LoraConfig, all_linear),
        Case("deberta-v2", "lora_all_linear", "lora", "FEATURE_EXTRACTION", LoraConfig, all_linear),
        Case("bert", "lora_pooler", "lora", "SEQ_CLS", LoraConfig, trained_pooler),
        Case("deberta-v2", "lora", "lora", "SEQ_CLS", LoraConfig, trained_pooler | {"target_modules": ["query_proj"]}),
        Case(
            "deberta-v2",
            "dora",
            "dora",
            "TOKEN_CLS",
            LoraConfig,
            dict(r=2, use_dora=True, target_modules=["value_proj", "output.dense"]),
        ),
        Case("deberta-v2", "prompt", "prompt_tuning", "TOKEN_CLS", PromptTuningConfig, dict(num_virtual_tokens=3)),
        Case("electra", "lora", "lora", "SEQ_CLS", LoraConfig, dict(r=2, target_modules=ALL_BERT)),
        Case("electra", "prefix", "prefix_tuning", "SEQ_CLS", PrefixTuningConfig, dict(num_virtual_tokens=3)),
        Case(
            "electra",
            "prompt",
            "prompt_tuning",
            "TOKEN_CLS",
            PromptTuningConfig,
            dict(num_virtual_tokens=3, token_dim=16),
        ),
        Case(
            "distilbert", "lora", "lora", "SEQ_CLS", LoraConfig, dict(r=2, target_modules=["q_lin", "out_lin", "lin1"])
        ),
        Case(
            "distilbert",
            "ia3",
            "ia3",
            "TOKEN_CLS",
            IA3Config,
            dict(target_modules=["k_lin", "v_lin", "lin2"], feedforward_modules=["lin2"]),
        ),
        Case(
            "distilbert",
            "prompt",
            "prompt_tuning",
            "TOKEN_CLS",
            PromptTuningConfig,
            dict(num_virtual_tokens=3, token_dim=24, num_attention_heads=3, num_layers=2),
        ),
        Case(
            "albert",
            "lora",
            "lora",
            "SEQ_CLS",
            LoraConfig,
            dict(r=2, target_modules=["query", "ffn", "ffn_output", "attention.dense"]),
        ),
        Case(
            "albert", "prompt", "prompt_tuning", "SEQ_CLS", PromptTuningConfig, dict(num_virtual_tokens=3, token_dim=16)
        ),
        Case(
            "modernbert",
            "lora",
            "lora",
            "FEATURE_EXTRACTION",
            LoraConfig,
            dict(r=2, target_modules=["Wqkv", "Wo", "Wi"]),
        ),
        Case(
            "modernbert",
            "dora",
            "dora",
            "FEATURE_EXTRACTION",
            LoraConfig,
            dict(r=2, use_dora=True, target_modules=["Wqkv", "mlp.Wo"]),
        ),
        Case(
            "modernbert",
            "prompt",
            "prompt_tuning",
            "FEATURE_EXTRACTION",
            PromptTuningConfig,
            dict(num_virtual_tokens=3),
        ),
    ]
    return cases


def _base_model(case: Case, seed: int) -> Any:
    """With a made-up head, which the adapter's replaces."""
    torch.manual_seed(seed)
    arguments = {} if case.task == "FEATURE_EXTRACTION" else {"num_labels": case.num_labels}
    return HEADS[case.task].from_pretrained(ROOT / "bases" / case.base, **arguments)


@torch.no_grad()
def save(case: Case, seed: int) -> str:
    model = get_peft_model(_base_model(case, 0), case.config(task_type=case.task, **case.arguments)).eval()
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        noise = torch.randn(parameter.shape, generator=generator)
        if "magnitude" in name:
            parameter.mul_(1 + 0.3 * noise)
        else:
            parameter.copy_((1.0 if "ia3_l" in name else 0.0) + 0.3 * noise)
    directory = f"adapters/{case.base}/peft_{case.name}"
    shutil.rmtree(ROOT / directory, ignore_errors=True)
    model.save_pretrained(ROOT / directory, safe_serialization=not case.as_bin)
    (ROOT / directory / "README.md").unlink(missing_ok=True)
    path = ROOT / directory / "adapter_config.json"
    config = json.loads(path.read_text()) | {"base_model_name_or_path": case.base}
    if case.name == "lora_all_linear":
        config["target_modules"] = "all-linear"  # as written by hand; the library writes the list that it stands for
    for name in ("target_modules", "modules_to_save", "feedforward_modules"):
        if isinstance(config.get(name), list):
            config[name] = sorted(config[name])  # written in the order of a set
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    return directory


@torch.no_grad()
def run(model: Any, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    base = model.get_base_model()
    kind = base.config.model_type
    kept = dict(inputs)
    if kind in ("distilbert", "modernbert"):
        del kept["token_type_ids"]
    if kind == "roberta":
        kept["token_type_ids"] = torch.zeros_like(kept["token_type_ids"])
    captured: dict[str, Tensor] = {}

    def keep(module: Any, args: Any, result: Any) -> None:
        captured["last_hidden_state"] = result[0]
        pooler = getattr(result, "pooler_output", None)
        if pooler is not None:
            captured["pooler_output"] = pooler

    handle = base.base_model.register_forward_hook(keep)
    result = model(**kept)
    handle.remove()
    names = ("logits", "start_logits", "end_logits")
    return captured | {name: value for name in names if (value := getattr(result, name, None)) is not None}


def record(case: Case, seed: int) -> dict[str, Any]:
    directory = save(case, seed)
    model = PeftModel.from_pretrained(_base_model(case, 1), ROOT / directory).eval()
    name = f"peft_{case.name}"
    path = f"inputs/{case.base}.main.safetensors"
    inputs = load_file(ROOT / path)
    outputs, tags = run(model, inputs), ["peft"]
    alone = [run(model, row(inputs, number)) for number in range(len(inputs["input_ids"]))]
    if "pooler" in case.arguments.get("modules_to_save", ()):  # then it is a part of the head, not of the base
        for own in (outputs, *alone):
            own.pop("pooler_output", None)
    noise = distance(outputs, alone, inputs)
    if noise > NOISE:  # prompts are rows in front of the tokens
        outputs = {f"row{i}.{key}": value for i, own in enumerate(alone) for key, value in own.items()}
        tags, noise = [*tags, "padding-dependent"], 0.0
    description = {
        "id": f"{case.base}/{name}",
        "base": case.base,
        "adapters": [{"name": name, "dir": directory}],
        "fusions": [],
        "heads": [],
        "composition": name,
        "head": None if case.task == "FEATURE_EXTRACTION" else name,
        "inputs": path,
        "methods": [case.method],
        "tags": tags,
    }
    return write_case(description, outputs, noise)


def main() -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    for old in [*(ROOT / "adapters").glob("*/peft_*"), *(ROOT / "outputs").glob("*/peft_*")]:
        shutil.rmtree(old) if old.is_dir() else old.unlink()
    cases, unsupported = [], []
    for number, case in enumerate(_cases()):
        try:
            cases.append(record(case, 700 + number))
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            unsupported.append({"base": case.base, "case": f"peft_{case.name}", "reason": reason})
    generator = {"peft": peft.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    write_manifest(generator, cases, unsupported)
    print(f"{len(cases)} cases; not run by the library: {len(unsupported)}", file=sys.stderr)
    for entry in unsupported:
        print(f"  {entry['base']} {entry['case']}: {entry['reason'][:200]}", file=sys.stderr)


if __name__ == "__main__":
    main()
