"""The arithmetic of AdapterHub's methods for one unpadded sequence, in float64 (see `plain`).

Every function reads a checkpoint's own tensors. S positions, H hidden size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from plain_files import Adapter, Config, State
from torch import Tensor

Norm = Callable[[Tensor], Tensor]
SITES = {"mh": "attention.output", "output": "output"}
LINEARS = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
}


def activation(name: str | None, slope: Tensor | None = None) -> Callable[[Tensor], Tensor]:
    found: dict[str, Callable[[Tensor], Tensor]] = {
        "relu": lambda x: x.clamp(min=0),
        "gelu": lambda x: 0.5 * x * (1 + torch.erf(x / math.sqrt(2))),
        "gelu_new": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
        "gelu_fast": lambda x: 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * x * (1 + 0.044715 * x**2))),
        "swish": lambda x: x * torch.sigmoid(x),
        "silu": lambda x: x * torch.sigmoid(x),
        "tanh": torch.tanh,
        "relu6": lambda x: x.clamp(0, 6),
        "mish": lambda x: x * torch.tanh(torch.log1p(x.exp())),
        "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
        "sigmoid": torch.sigmoid,
        "leakyrelu": lambda x: torch.where(x > 0, x, 0.01 * x),
        "prelu": lambda x: torch.where(x > 0, x, (0.25 if slope is None else slope) * x),
        "linear": lambda x: x,
    }
    return found[name.lower()] if name else found["linear"]


def affine(x: Tensor, state: State, path: str) -> Tensor:
    y = x @ state[f"{path}.weight"].T
    return y + state[f"{path}.bias"] if f"{path}.bias" in state else y


def normed(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + eps) * weight + bias


def opened(x: Tensor, state: State, path: str) -> Tensor:
    """Gates: the mean over positions of the logistic function."""
    return torch.sigmoid(affine(x, state, path)).mean(0)


def kind_of(config: Config) -> str:
    return config.get("architecture") or "bottleneck"


def members(adapter: Adapter, *kinds: str) -> list[Config]:
    return [member for member in adapter.members if kind_of(member) in kinds]


class Bottleneck:
    """An adapter's module at one site."""

    def __init__(self, adapter: Adapter, config: Config, path: str) -> None:
        self.config, self.path, self.state = config, f"{path}.adapters.{adapter.name}", adapter.tensors
        self.shared = f"shared_parameters.{adapter.name}"

    @classmethod
    def at(cls, adapter: Adapter | None, layer: int, site: str) -> Bottleneck | None:
        for config in members(adapter, "bottleneck") if adapter else ():
            if config.get(f"{site}_adapter") and layer not in config["leave_out"]:
                return cls(adapter, config, f"encoder.layer.{layer}.{SITES[site]}")
        return None

    def option(self, name: str, default: Any = False) -> Any:
        value = self.config.get(name)
        return default if value is None else value

    @property
    def is_parallel(self) -> bool:
        return bool(self.option("is_parallel"))

    def pre(self, h: Tensor, t: Tensor, norm: Norm, query_before: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """What the module reads, its residual, and a fusion's query."""
        if self.is_parallel:
            return t, t, t
        query = residual = h
        where = self.option("residual_before_ln", True)
        if self.option("original_ln_before"):
            h = h + t
            residual = h if where == "post_add" else residual
            h = norm(h)
        residual = residual if where else h
        return h, residual, query if query_before else h

    def core(self, h: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """The module's output and its scaled up-projection."""
        z = h
        if self.option("ln_before"):
            z = self._norm(z, "adapter_norm_before")
        down = "adapter_down.1" if self.option("ln_before") else "adapter_down.0"
        slope = self.state.get(f"{self.path}.non_linearity.f.weight")
        narrow = activation(self.config["non_linearity"], slope)(self._project(z, down, "down"))
        up = self._scale() * self._project(narrow, "adapter_up", "up")
        out = up
        if self.option("use_gating"):
            out = out * opened(h, self.state, f"{self.path}.gate")
        if self.is_parallel:
            return (self._norm(out, "adapter_norm_after") if self.option("ln_after") else out), up
        is_first = self.option("adapter_residual_before_ln")
        if is_first:
            out = out + residual
        if self.option("ln_after"):
            out = self._norm(out, "adapter_norm_after")
        return (out if is_first else out + residual), up

    def post(self, out: Tensor, h: Tensor, t: Tensor, norm: Norm) -> Tensor:
        if self.is_parallel:
            out = out + h
        return norm(out + t) if self.option("original_ln_after", True) else out

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return normed(x, self.state[f"{self.path}.{name}.weight"], self.state[f"{self.path}.{name}.bias"], 1e-5)

    def _scale(self) -> Tensor | float:
        scaling = self.option("scaling", 1.0)
        return self.state[f"{self.path}.scaling"] if isinstance(scaling, str) else float(scaling)

    def _project(self, x: Tensor, name: str, role: str) -> Tensor:
        path = f"{self.path}.{name}"
        if not self.option("phm_layer"):
            return affine(x, self.state, path)
        rules, blocks = self._rules(path), self._blocks(path, role)
        weight = sum((torch.kron(rule, block) for rule, block in zip(rules, blocks, strict=True)), torch.zeros(()))
        y = x @ weight
        return y + self.state[f"{path}.b"] if f"{path}.b" in self.state else y

    def _rules(self, path: str) -> Tensor:
        start = self.shared if self.option("shared_phm_rule", True) else path
        if self.option("factorized_phm_rule"):
            return self.state[f"{start}.phm_rule_left"] @ self.state[f"{start}.phm_rule_right"]
        return self.state[f"{start}.phm_rule"]

    def _blocks(self, path: str, role: str) -> Tensor:
        start = f"{self.shared}.W_{role}" if self.option("shared_W_phm") else f"{path}.W"
        if self.option("factorized_phm_W", True):
            return self.state[f"{start}_left"] @ self.state[f"{start}_right"]
        return self.state[start]


class Delta:
    """An adapter's low-rank delta or scale at one Linear."""

    def __init__(self, adapter: Adapter, config: Config, path: str) -> None:
        self.config, self.path, self.state = config, f"{path}.loras.{adapter.name}", adapter.tensors
        self.shared = f"shared_parameters.{adapter.name}"
        self.is_scale = config.get("composition_mode") == "scale"
        self.is_dora = bool(config.get("use_dora"))

    @classmethod
    def at(cls, adapter: Adapter | None, layer: int, linear: str) -> Delta | None:
        for config in members(adapter, "lora", "mtl_lora") if adapter else ():
            wanted = {name: name in config.get("attn_matrices", ("q", "v")) for name in "qkv"}
            wanted["intermediate"] = bool(config.get("intermediate_lora"))
            wanted["output"] = bool(config.get("output_lora"))
            if linear in "qkv" and not config.get("selfattn_lora", True):
                continue
            if wanted[linear] and layer not in config["leave_out"]:
                return cls(adapter, config, f"encoder.layer.{layer}.{LINEARS[linear]}")
        return None

    def matrix(self) -> Tensor:
        """Unscaled [out, in]."""
        get = self.state.__getitem__
        if f"{self.path}.vera_B" in self.state:
            return (
                get(f"{self.path}.vera_B")
                @ get(f"{self.shared}.lora_B")
                @ get(f"{self.path}.vera_D")
                @ get(f"{self.shared}.lora_A")
            )
        a, b = get(f"{self.path}.lora_A"), get(f"{self.path}.lora_B")
        if kind_of(self.config) == "mtl_lora":
            weights = (get(f"{self.path}.weights") / self.config.get("weights_sharpness", 0.05)).exp()
            b = ((weights / weights.sum())[:, None, None] * b).sum(0)
            return b @ torch.diag(get(f"{self.path}.task_specific.values")) @ a
        return b @ a

    def value(self, x: Tensor, before: Tensor | None) -> Tensor:
        """What is added to, or multiplied with, the Linear's output; `before` is the last adapter's in a stack."""
        is_gated = bool(self.config.get("use_gating"))
        alpha = self.config.get("alpha", 8)
        if self.is_scale:
            own = self.state[f"{self.path}.lora_B"].flatten()
            own = own * (opened(x, self.state, f"{self.path}.gate") if is_gated else alpha)
            return own if before is None else before * own
        delta = (x if before is None else before) @ self.matrix().T
        return delta * (opened(x, self.state, f"{self.path}.gate") if is_gated else alpha / self.config.get("r", 8))

    def combined(self, y: Tensor, value: Tensor, weight: Tensor) -> Tensor:
        if self.is_scale:
            return y * value
        if not self.is_dora:
            return y + value
        norms = torch.linalg.norm(weight + self.matrix(), dim=1)
        return self.state[f"{self.path}.m.weight"].flatten() / norms * (y + value)


def prefix(adapter: Adapter | None, layer: int, num_layers: int, x: Tensor) -> tuple[Tensor, Tensor] | None:
    """Keys and values [P, H] of one layer; `x` is the layer's input."""
    for config in members(adapter, "prefix_tuning") if adapter else ():
        carrying = [i for i in range(num_layers) if i not in config["leave_out"]]
        if layer not in carrying:
            continue
        assert adapter is not None
        path, state = f"prefix_tuning.prefix_tunings.{adapter.name}.self_prefix", adapter.tensors
        if config.get("flat"):
            flat = state[f"{path}.control_trans"]
        else:
            middle = activation(config.get("non_linearity", "tanh"))(
                affine(state[f"{path}.wte.weight"], state, f"{path}.control_trans.0")
            )
            flat = affine(middle, state, f"{path}.control_trans.2")
        both = flat.reshape(config.get("prefix_length", 30), len(carrying), 2, -1)[:, carrying.index(layer)]
        keys, values = both[:, 0], both[:, 1]
        if config.get("use_gating"):
            gate = f"encoder.layer.{layer}.attention.self.prefix_tuning.prefix_gates.{adapter.name}"
            gates = opened(x, state, gate)
            keys, values = keys * gates[0], values * gates[-1]
        return keys, values
    return None


def with_prompt(adapter: Adapter | None, embedded: Tensor) -> Tensor:
    for config in members(adapter, "prompt_tuning") if adapter else ():
        assert adapter is not None
        prompt = adapter.tensors[f"prompt_tuning.prompt_tunings.{adapter.name}.prompt_embedding.weight"]
        at = 1 if config.get("combine", "prefix") == "prefix_after_bos" else 0
        return torch.cat([embedded[:at], prompt, embedded[at:]])
    return embedded


def own_rows(adapter: Adapter | None, length: int) -> list[int]:
    """The rows of a sequence of this length, prompt included, that are not the prompt's."""
    for config in members(adapter, "prompt_tuning") if adapter else ():
        at = 1 if config.get("combine", "prefix") == "prefix_after_bos" else 0
        return [*range(at), *range(at + config["prompt_length"], length)]
    return list(range(length))


def coupled(adapter: Adapter | None, x: Tensor, *, is_inverse: bool = False) -> Tensor:
    for config in members(adapter, "bottleneck") if adapter else ():
        if config.get("inv_adapter") != "nice":
            continue
        assert adapter is not None
        path, state = f"invertible_adapters.{adapter.name}", adapter.tensors

        def through(y: Tensor, name: str, path: str = path, state: State = state, config: Config = config) -> Tensor:
            slope = state.get(f"{path}.{name}.1.f.weight")
            middle = activation(config["non_linearity"], slope)(affine(y, state, f"{path}.{name}.0"))
            return affine(middle, state, f"{path}.{name}.2")

        half = x.shape[-1] // 2
        first, second = x[:, :half], x[:, half:]
        if is_inverse:
            second = second - through(first, "G")
            return torch.cat([first - through(second, "F"), second], dim=-1)
        first = first + through(second, "F")
        return torch.cat([first, second + through(first, "G")], dim=-1)
    return x


def edited(adapter: Adapter | None, layer: int, h: Tensor) -> Tensor:
    for config in members(adapter, "reft") if adapter else ():
        if config.get("layers", "all") != "all" and layer not in config["layers"]:
            continue
        assert adapter is not None
        path, state, out = f"encoder.layer.{layer}.reft_layer.refts.{adapter.name}.units", adapter.tensors, h.clone()
        first, last = config.get("prefix_positions", 3), config.get("suffix_positions", 0)
        places = ((0, range(min(first, len(h)))), (1, range(max(0, len(h) - last), len(h))))
        for unit, positions in places:
            own = f"{path}.{0 if config.get('tied_weights') else unit}"
            for i in positions:
                rows = _rows(state, f"{own}.projection")
                target = activation(config.get("non_linearity"))(affine(h[i], state, f"{own}.learned_source"))
                if config.get("subtract_projection", True):
                    target = target - rows @ h[i]
                out[i] = h[i] + target @ rows
        return out
    return h


def _rows(state: State, path: str) -> Tensor:
    """The projection [r, H], where it is orthogonal from its parametrization."""
    if f"{path}.weight" in state:
        return state[f"{path}.weight"]
    start = f"{path}.parametrizations.weight"
    x, base = state[f"{start}.original"].T, state[f"{start}.0.base"]
    if x.shape[0] == x.shape[1]:
        lower = x.tril()
        return (base @ torch.linalg.matrix_exp(lower - lower.T)).T
    lower = x.tril(-1)
    q = torch.eye(len(x), dtype=x.dtype)
    for j in range(x.shape[1]):  # the reflections one after the other, each with a 1 on the diagonal
        vector = lower[:, j].clone()
        vector[j] = 1.0
        q = q - (2 / (1 + (lower[:, j] ** 2).sum())) * (q @ vector)[:, None] * vector[None, :]
    q = q[:, : x.shape[1]] * x.diagonal().int()
    return (base @ q).T
