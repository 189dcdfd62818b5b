"""Record what AdapterHub's `adapters` library answers: one case per method, composition and head. See README.md."""

from __future__ import annotations

import json
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import adapters
import torch
import transformers
from adapters import (
    AdapterPlusConfig,
    AutoAdapterModel,
    CompacterConfig,
    CompacterPlusPlusConfig,
    ConfigUnion,
    DoRAConfig,
    DoubleSeqBnConfig,
    DoubleSeqBnInvConfig,
    DvoRAConfig,
    IA3Config,
    LoRAConfig,
    LoReftConfig,
    MAMConfig,
    MTLLoRAConfig,
    NoReftConfig,
    ParBnConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    SeqBnConfig,
    SeqBnInvConfig,
    UniPELTConfig,
    VeraConfig,
)
from adapters.composition import Average, BatchSplit, Fuse, Parallel, Split, Stack
from cases import BASES, NOISE, ROOT, distance, make_bases, make_inputs, row, write_case, write_manifest
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModel

RF = 4  # reduction factor: few enough channels, and divisible for Compacter
PREFIX = dict(prefix_length=5, bottleneck_size=7)
METHODS: dict[str, tuple[Any, Sequence[str]]] = {
    "seq_bn": (SeqBnConfig(reduction_factor=RF), ["bottleneck"]),
    "double_seq_bn": (DoubleSeqBnConfig(reduction_factor=3), ["bottleneck"]),
    "par_bn": (ParBnConfig(reduction_factor=RF), ["bottleneck"]),
    "scaled_par_bn": (ParBnConfig(reduction_factor=RF, scaling="learned"), ["bottleneck"]),
    "adapterplus": (AdapterPlusConfig(reduction_factor=RF, stochastic_depth=0.0), ["bottleneck"]),
    "bn_ln_both": (DoubleSeqBnConfig(reduction_factor=RF, ln_before=True, ln_after=True), ["bottleneck"]),
    "bn_gated": (SeqBnConfig(reduction_factor=RF, use_gating=True), ["bottleneck"]),
    "bn_post_add": (SeqBnConfig(reduction_factor=RF, residual_before_ln="post_add"), ["bottleneck"]),
    "bn_leave_out": (SeqBnConfig(reduction_factor={"default": RF, "1": 6}, leave_out=[0]), ["bottleneck"]),
    "seq_bn_inv": (SeqBnInvConfig(reduction_factor=RF), ["bottleneck", "invertible"]),
    "double_seq_bn_inv": (DoubleSeqBnInvConfig(reduction_factor=RF), ["bottleneck", "invertible"]),
    "compacter": (CompacterConfig(reduction_factor=5, phm_dim=4), ["compacter"]),
    "compacter_pp": (CompacterPlusPlusConfig(reduction_factor=5, phm_dim=2, phm_rank=2), ["compacter"]),
    "compacter_factorised": (
        CompacterConfig(reduction_factor=5, phm_dim=4, shared_phm_rule=False, factorized_phm_rule=True),
        ["compacter"],
    ),
    "prefix_tuning": (PrefixTuningConfig(**PREFIX), ["prefix_tuning"]),
    "prefix_tuning_flat": (PrefixTuningConfig(flat=True, prefix_length=3, leave_out=[1]), ["prefix_tuning"]),
    "prefix_gated": (
        PrefixTuningConfig(flat=True, prefix_length=4, use_gating=True, shared_gating=False),
        ["prefix_tuning"],
    ),
    "prompt_tuning": (PromptTuningConfig(prompt_length=3), ["prompt_tuning"]),
    "prompt_after_bos": (PromptTuningConfig(prompt_length=4, combine="prefix_after_bos"), ["prompt_tuning"]),
    "lora": (LoRAConfig(r=3, alpha=7), ["lora"]),
    "lora_all": (
        LoRAConfig(r=3, alpha=5, attn_matrices=["q", "k", "v"], intermediate_lora=True, output_lora=True),
        ["lora"],
    ),
    "lora_gated": (LoRAConfig(r=2, alpha=5, use_gating=True), ["lora"]),
    "ia3": (IA3Config(), ["ia3"]),
    "ia3_gated": (IA3Config(use_gating=True, output_lora=True), ["ia3"]),
    "vera": (VeraConfig(r=3, alpha=2), ["vera"]),
    "dora": (DoRAConfig(r=3, alpha=6), ["dora"]),
    "dvora": (DvoRAConfig(r=3, alpha=4), ["dvora"]),
    "mtl_lora": (MTLLoRAConfig(r=3, alpha=4, n_up_projection=2), ["mtl_lora"]),
    "loreft": (LoReftConfig(r=2, prefix_positions=2, suffix_positions=1), ["reft"]),
    "noreft": (NoReftConfig(r=3, prefix_positions=3, layers=[1]), ["reft"]),
    "mam": (
        MAMConfig(PrefixTuningConfig(**PREFIX), ParBnConfig(reduction_factor=RF)),
        ["bottleneck", "prefix_tuning", "union"],
    ),
    "unipelt": (
        UniPELTConfig(
            PrefixTuningConfig(use_gating=True, **PREFIX),
            SeqBnConfig(reduction_factor=RF, use_gating=True),
            LoRAConfig(r=2, use_gating=True),
        ),
        ["bottleneck", "lora", "prefix_tuning", "union"],
    ),
    "union_lora_bn": (
        ConfigUnion(LoRAConfig(r=2, alpha=3), DoubleSeqBnConfig(reduction_factor=RF)),
        ["bottleneck", "lora", "union"],
    ),
}
HEADS: dict[str, tuple[str, dict[str, Any], str]] = {
    "h_cls": ("classification", dict(num_labels=3), "main"),
    "h_cls_pooler": ("classification", dict(num_labels=2, layers=1, use_pooler=True), "main"),
    "h_cls_relu": ("classification", dict(num_labels=4, layers=3, activation_function="relu"), "main"),
    "h_regression": ("classification", dict(num_labels=1), "main"),
    "h_multilabel": ("classification", dict(num_labels=5, multilabel=True), "main"),
    "h_tagging": ("tagging", dict(num_labels=4, layers=2), "main"),
    "h_qa": ("qa", dict(), "main"),
    "h_mc": ("multiple_choice", dict(num_choices=2), "mc"),
    "h_mlm_inv": ("masked_lm", dict(), "main"),
    "h_causal": ("causal_lm", dict(), "main"),
    "h_dp": ("dependency_parsing", dict(num_labels=3), "dp"),
}
PARTS: dict[str, Any] = {  # adapters that compositions are made of; those with a head are in PART_HEADS
    "c_a": SeqBnConfig(reduction_factor=RF),
    "c_b": SeqBnConfig(reduction_factor=6, non_linearity="gelu"),
    "c_c": SeqBnConfig(reduction_factor=RF),
    "c_double": DoubleSeqBnConfig(reduction_factor=RF),
    "c_lang": SeqBnInvConfig(reduction_factor=3),
    "c_lora": LoRAConfig(r=3, alpha=4),
    "c_lora2": LoRAConfig(r=2, alpha=5),
    "c_ia3": IA3Config(),
    "c_ia3b": IA3Config(),
    "c_prefix": PrefixTuningConfig(flat=True, prefix_length=3),
}
PART_HEADS = {"c_a": 3, "c_b": 2}
SMALL_METHODS = (
    "seq_bn",
    "double_seq_bn",
    "par_bn",
    "seq_bn_inv",
    "compacter",
    "prefix_tuning",
    "prompt_tuning",
    "lora_all",
    "ia3",
    "vera",
    "dora",
    "loreft",
    "mam",
)
FULL = ("bert", "roberta")
PLUGINS = ("modernbert",)


def tree(node: Any) -> Any:
    """A composition in the manifest's form."""
    if isinstance(node, str):
        return node
    result: dict[str, Any] = {"type": type(node).__name__, "children": [tree(child) for child in node]}
    if isinstance(node, Fuse) and node.name != ",".join(node.children):
        result["name"] = node.name
    if isinstance(node, Split):
        result["splits"] = node.splits
    if isinstance(node, BatchSplit):
        result["batch_sizes"] = node.batch_sizes
    if isinstance(node, Average):
        result |= {"weights": node.weights}
    return result


def compositions() -> dict[str, tuple[Any, str | list[str] | None, str, list[str]]]:
    """id -> composition, head, inputs, tags"""
    return {
        "stack_lang_task": (Stack("c_lang", "c_a"), "c_a", "main", ["stack"]),
        "stack_double_seq": (Stack("c_double", "c_b"), None, "main", ["stack"]),
        "stack_lora_seq": (Stack("c_lora", "c_a"), None, "main", ["stack"]),
        "stack_prefix_seq": (Stack("c_prefix", "c_c"), None, "main", ["stack"]),
        "stack_lora_lora": (Stack("c_lora", "c_lora2"), None, "main", ["stack", "quirk"]),
        "stack_ia3_ia3": (Stack("c_ia3", "c_ia3b"), None, "main", ["stack"]),
        "fuse": (Fuse("c_a", "c_b", "c_c"), None, "main", ["fuse"]),
        "fuse_static": (Fuse("c_a", "c_c"), "c_a", "main", ["fuse"]),
        "stack_lang_fuse": (Stack("c_lang", Fuse("c_a", "c_b", "c_c")), "c_b", "main", ["stack", "fuse"]),
        "average": (Average("c_a", "c_b", weights=[0.3, 0.7]), None, "main", ["average", "quirk"]),
        "average_lora": (Average("c_lora", "c_lora2", weights=[0.4, 0.6]), None, "main", ["average", "quirk"]),
        "split": (Split("c_a", "c_b", splits=[3, 6]), None, "full", ["split"]),
        "batchsplit": (BatchSplit("c_a", "c_c", batch_sizes=[1, 3]), None, "main", ["batchsplit"]),
        "parallel": (Parallel("c_a", "c_b"), ["c_a", "c_b"], "main", ["parallel"]),
        "stack_lang_parallel": (
            Stack("c_lang", Parallel("c_a", "c_b")),
            ["c_a", "c_b"],
            "main",
            ["stack", "parallel"],
        ),
    }


class Recorder:
    """The cases of one base."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.cases: list[dict[str, Any]] = []
        self.unsupported: list[dict[str, str]] = []
        self._fusions: set[str] = set()

    def model(self) -> Any:
        """A fresh model; whatever the library makes up in it is zeroed, so that it is the base and nothing else."""
        torch.manual_seed(0)
        if self.base not in PLUGINS:
            return AutoAdapterModel.from_pretrained(ROOT / "bases" / self.base).eval()
        model = AutoModel.from_pretrained(ROOT / "bases" / self.base)
        stored = set(model.state_dict())
        adapters.init(model)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name not in stored:
                    parameter.zero_()
        return model.eval()

    def save_adapter(
        self, name: str, config: Any, seed: int, add_head: Callable[[Any], None] = lambda model: None
    ) -> None:
        model = self.model()
        model.add_adapter(name, config=config)
        add_head(model)
        randomise(model, name, seed)
        path = ROOT / "adapters" / self.base / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            model.save_adapter(str(path), name, use_safetensors=True)
        except RuntimeError:  # tensors under several keys
            shutil.rmtree(path, ignore_errors=True)
            model.save_adapter(str(path), name)
        self._forget_place(path)

    def _forget_place(self, path: Path) -> None:
        """The library writes the folder of the base into what it saves."""
        for json_path in path.glob("*_config.json"):
            config = json.loads(json_path.read_text()) | {"model_name": self.base}
            json_path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")

    def load(self, names: Sequence[str], fusions: Sequence[str] = ()) -> Any:
        model = self.model()
        for name in names:
            model.load_adapter(str(ROOT / "adapters" / self.base / name), use_safetensors=True)
        for directory in fusions:
            model.load_adapter_fusion(str(ROOT / directory), use_safetensors=True)
        return model

    def record(
        self,
        identity: str,
        names: Sequence[str],
        composition: Any,
        head: str | list[str] | None,
        inputs: str,
        tags: list[str],
        methods: Sequence[str],
        fusion: tuple[str, str] | None = None,
    ) -> None:
        """Load from files, run the batch and each row alone, and write the case."""
        case = {
            "id": f"{self.base}/{identity}",
            "base": self.base,
            "adapters": [{"name": name, "dir": f"adapters/{self.base}/{name}"} for name in names],
            "fusions": [{"name": fusion[0], "dir": fusion[1]}] if fusion else [],
            "heads": [],
            "composition": tree(composition) if composition is not None else None,
            "head": head,
            "inputs": f"inputs/{self.base}.{inputs}.safetensors",
            "methods": list(methods),
        }
        tensors = load_file(ROOT / case["inputs"])
        try:
            model = self.load(names, [fusion[1]] if fusion else [])
            outputs = run(model, composition, head, tensors)
        except Exception as error:
            self.unsupported.append({"base": self.base, "case": identity, "reason": f"{type(error).__name__}: {error}"})
            if names == [identity]:
                shutil.rmtree(ROOT / "adapters" / self.base / identity)
            return
        noise = 0.0
        if inputs in ("main", "dp") and "batchsplit" not in tags and "parallel" not in tags:
            alone = [run(model, composition, head, row(tensors, number)) for number in range(len(tensors["input_ids"]))]
            noise = 0.0 if inputs == "dp" else distance(outputs, alone, tensors)
            if noise > NOISE:
                tags, noise = [*tags, "padding-dependent"], 0.0
                outputs = {f"row{i}.{name}": value for i, own in enumerate(alone) for name, value in own.items()}
        self.cases.append(write_case(case | {"tags": tags}, outputs, noise))

    def all(self) -> None:
        is_full = self.base in FULL
        self.record("base", [], None, None, "main", ["base"], [])
        for number, (name, (config, methods)) in enumerate(METHODS.items()):
            if not is_full and name not in SMALL_METHODS:
                continue
            if self.base in PLUGINS and name == "compacter":
                continue  # saved from a model without a head, its shared rule is missing
            try:
                self.save_adapter(name, config, seed=100 + number)
            except Exception as error:
                reason = f"{type(error).__name__}: {error}"
                self.unsupported.append({"base": self.base, "case": name, "reason": reason})
                continue
            self.record(name, [name], name, None, "main", ["method"], methods)
        if self.base not in PLUGINS:
            self._heads(HEADS if is_full else {name: HEADS[name] for name in ("h_cls", "h_tagging", "h_mlm_inv")})
        self._compositions(None if is_full else ("stack_lang_task", "fuse", "batchsplit"))

    def _heads(self, heads: dict[str, tuple[str, dict[str, Any], str]]) -> None:
        for number, (name, (kind, arguments, inputs)) in enumerate(heads.items()):
            config = SeqBnInvConfig(reduction_factor=8) if name.endswith("inv") else SeqBnConfig(reduction_factor=8)
            self.save_adapter(
                name,
                config,
                300 + number,
                lambda model, name=name, kind=kind, arguments=arguments: getattr(model, f"add_{kind}_head")(
                    name, **arguments
                ),
            )
            methods = ["bottleneck", "invertible"] if name.endswith("inv") else ["bottleneck"]
            self.record(name, [name], name, name, inputs, ["head", kind], methods)

    def _compositions(self, chosen: Sequence[str] | None) -> None:
        wanted = {key: value for key, value in compositions().items() if chosen is None or key in chosen}
        used = {leaf for composition, *_ in wanted.values() for leaf in leaves(composition)}
        for number, (name, config) in enumerate(PARTS.items()):
            if name not in used:
                continue
            labels = PART_HEADS.get(name) if self.base not in PLUGINS else None
            self.save_adapter(
                name,
                config,
                400 + number,
                lambda model, name=name, labels=labels: (
                    labels and model.add_classification_head(name, num_labels=labels)
                ),
            )
        for name, (composition, head, inputs, tags) in wanted.items():
            fuse = next((node for node in nodes(composition) if isinstance(node, Fuse)), None)
            fusion = self._fusion(fuse, "static" if "static" in name else "dynamic") if fuse else None
            if self.base in PLUGINS:
                head = None
            members = sorted(set(leaves(composition)))
            methods = sorted({METHOD_OF.get(leaf, "bottleneck") for leaf in members})
            self.record(name, members, composition, head, inputs, ["composition", *tags], methods, fusion)

    def _fusion(self, fuse: Any, kind: str) -> tuple[str, str]:
        """Name and folder."""
        directory = f"fusions/{self.base}/{'_'.join(fuse.children)}"
        if directory not in self._fusions:
            model = self.load(list(fuse.children))
            model.add_adapter_fusion(list(fuse.children), kind)
            randomise(model, ",".join(fuse.children), 500)
            (ROOT / directory).parent.mkdir(parents=True, exist_ok=True)
            model.save_adapter_fusion(str(ROOT / directory), list(fuse.children), use_safetensors=True)
            self._forget_place(ROOT / directory)
            self._fusions.add(directory)
        return ",".join(fuse.children), directory


METHOD_OF = {"c_lora": "lora", "c_lora2": "lora", "c_ia3": "ia3", "c_ia3b": "ia3", "c_prefix": "prefix_tuning"}


def nodes(composition: Any) -> list[Any]:
    own = [] if isinstance(composition, str) else [node for child in composition for node in nodes(child)]
    return [composition, *own]


def leaves(composition: Any) -> list[str]:
    return [node for node in nodes(composition) if isinstance(node, str)]


@torch.no_grad()
def randomise(model: nn.Module, name: str, seed: int) -> None:
    """Give every weight of an adapter, fusion or head a value that matters."""
    generator = torch.Generator().manual_seed(seed)

    def noise(like: Tensor) -> Tensor:
        return torch.randn(like.shape, generator=generator)

    parts = [(key, parameter) for key, parameter in model.named_parameters() if f".{name}." in f".{key}."]
    for key, parameter in parts:
        if key.endswith(".original"):  # an orthogonal matrix: what lies above the diagonal is free
            parameter.add_(0.3 * torch.triu(noise(parameter), 1))
        elif key.endswith(".base"):
            continue
        elif "norm" in key and key.endswith("weight"):
            parameter.copy_(1 + 0.3 * noise(parameter))
        elif key.endswith("m.weight"):
            parameter.mul_(1 + 0.3 * noise(parameter))
        else:
            parameter.copy_((0.5 if parameter.ndim == 3 else 0.25) * noise(parameter))
        if key.endswith("lora_B") and parameter.shape[-1] == 1:
            parameter.add_(1.0)


@torch.no_grad()
def run(model: Any, composition: Any, head: str | list[str] | None, inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    """The library's outputs, hidden states and pooler of the base model included."""
    model.set_active_adapters(composition)
    if hasattr(model, "heads"):
        model.active_head = head
    accepted = {"distilbert": ("token_type_ids",), "modernbert": ("token_type_ids",)}.get(model.config.model_type, ())
    kept = {name: tensor for name, tensor in inputs.items() if name not in accepted}
    if model.config.model_type == "roberta":
        kept["token_type_ids"] = torch.zeros_like(kept["token_type_ids"])
    captured: dict[str, Tensor] = {}
    backbone = model.base_model
    handle = backbone.register_forward_hook(lambda module, args, result: captured.update(_hidden(result)))
    try:
        result = model(**kept)
    finally:
        handle.remove()
    return captured | _head_outputs(result, head)


def _hidden(result: Any) -> dict[str, Tensor]:
    outputs = {"last_hidden_state": result[0] if isinstance(result, tuple) else result.last_hidden_state}
    pooler = getattr(result, "pooler_output", None)
    return outputs | ({} if pooler is None else {"pooler_output": pooler})


def _head_outputs(result: Any, head: str | list[str] | None) -> dict[str, Tensor]:
    if head is None:
        return {}
    if isinstance(head, list):
        parts = result if isinstance(result, list) else result.head_outputs
        return {f"head{number}.logits": part.logits for number, part in enumerate(parts)}
    names = ("logits", "start_logits", "end_logits", "arc_preds", "rel_preds")
    return {name: value for name in names if (value := getattr(result, name, None)) is not None}


def main() -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)
    for folder in ("adapters", "bases", "fusions", "inputs", "outputs"):
        shutil.rmtree(ROOT / folder, ignore_errors=True)
    (ROOT / "manifest.json").unlink(missing_ok=True)
    make_bases()
    make_inputs()
    cases, unsupported = [], []
    for base in BASES:
        recorder = Recorder(base)
        recorder.all()
        cases += recorder.cases
        unsupported += recorder.unsupported
    generator = {"adapters": adapters.__version__, "transformers": transformers.__version__, "torch": torch.__version__}
    write_manifest(generator, cases, unsupported)
    print(f"{len(cases)} cases; not run by the library: {len(unsupported)}", file=sys.stderr)
    for entry in unsupported:
        print(f"  {entry['base']} {entry['case']}: {entry['reason'][:200]}", file=sys.stderr)


if __name__ == "__main__":
    main()
