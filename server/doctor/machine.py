"""What the machine has for computing: device, cores, memory, open files."""

from __future__ import annotations

import platform
import resource
import shutil
from pathlib import Path

import torch

from server.config import MIB, ApiConfig, ModelConfig, ServerConfig
from server.cores import usable_cores
from server.doctor.finding import Finding, ok, problem, warning
from server.errors import InvalidInput
from server.model.base import device_of, dtype_of
from server.model.dense import check_quantization
from server.model.kernels import backend

MEMORY, CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")
CPU_FLAGS = Path("/proc/cpuinfo")
FAST_IN = {torch.bfloat16: ("avx512_bf16", "amx_bf16", "bf16"), torch.float16: ("avx512_fp16", "amx_fp16", "asimdhp")}
OWN_FILES = 256  # libraries, weights, the index, pipes of front processes
LEAST_FILES = 256


def device(model: ModelConfig) -> Finding:
    """Whether there is what `model.device` asks for."""
    try:
        found = device_of(model.device)
    except InvalidInput as error:
        return problem("device", error.message, _device_remedy(model.device))
    if found.type == "cpu" and model.device == "auto" and shutil.which("nvidia-smi"):
        return warning(
            "device",
            "device 'auto' is the CPU, though this machine has NVIDIA's tools",
            f"{_no_cuda()}; to serve on the CPU and hear no more of it: --device cpu (model.device)",
        )
    if found.type == "cuda":
        return ok("device", f"{found}: {torch.cuda.get_device_name(found)}")
    return ok("device", f"cpu, {platform.machine()}")


def _device_remedy(name: str) -> str:
    num_devices = torch.cuda.device_count()
    if not name.startswith("cuda"):
        return "--device auto, cpu or cuda (model.device)"
    if num_devices:
        return f"--device cuda:0 to cuda:{num_devices - 1} (model.device)"
    return f"for {name}: {_no_cuda()}; or serve on the CPU: --device cpu (model.device)"


def _no_cuda() -> str:
    if torch.version.cuda is None:
        return "install torch's build for CUDA in place of the one for CPUs (the Dockerfile's target cuda has it)"
    return "see whether nvidia-smi shows a GPU, install its driver if not, and start a container with --gpus all"


def compute(model: ModelConfig) -> Finding:
    """Whether backend, dtype and quantization can be had on the device, and are of use there."""
    device = device_of(model.device)
    dtype = dtype_of(model.dtype, device)
    try:
        backend(model.backend, device)
        check_quantization(model.quantization, device, dtype)
    except InvalidInput as error:
        return problem("compute", error.message, "model.backend=auto, model.quantization=none (--set)")
    name = str(dtype).removeprefix("torch.")
    if device.type == "cuda":
        return ok("compute", f"{name} on {device}")
    features = torch.backends.cpu.get_cpu_capability()
    if features in ("DEFAULT", "NO AVX") and platform.machine() in ("x86_64", "AMD64"):
        return warning(
            "compute",
            f"this CPU shows no AVX2 (torch finds {features}), without which everything takes several times as long",
            "serve on a CPU with AVX2 or AVX-512; in a virtual machine, pass the host's CPU through",
        )
    if not _flags().isdisjoint(FAST_IN.get(dtype, ())) or dtype is torch.float32:
        return ok("compute", f"{name} with {features}")
    return warning(
        "compute", f"dtype {name} has no instructions on this CPU", "--dtype float32 (model.dtype) is faster here"
    )


def _flags() -> set[str]:
    try:
        lines = CPU_FLAGS.read_text().splitlines()
    except OSError:
        return set()
    return next((set(line.split()) for line in lines if line.lower().startswith(("flags", "features"))), set())


def cores(model: ModelConfig, api: ApiConfig) -> Finding:
    usable = usable_cores()
    if model.num_threads > usable:
        return warning(
            "cores",
            f"num_threads {model.num_threads} is more than the {usable} cores that this process may use",
            f"--set model.num_threads={usable}, or 0 for all of them",
        )
    if api.frontends >= usable:
        return warning(
            "cores",
            f"frontends {api.frontends} and the engine share {usable} cores, and take them from each other",
            f"--frontends {max(0, usable - 1)} (api.frontends), or more cores",
        )
    return ok("cores", f"{usable} cores, {model.num_threads or usable} compute threads")


def memory(config: ServerConfig, num_parameters: int) -> Finding:
    """Room for the base, and for what the tiers may grow to. `num_parameters` of the base."""
    device = device_of(config.model.device)
    copies = 2 if config.cache.verify_at_load else 1
    base_bytes = copies * num_parameters * dtype_of(config.model.dtype, device).itemsize
    if device.type == "cuda":
        free, tier, budget = torch.cuda.mem_get_info(device)[0], "device_bytes", config.cache.device_bytes
    else:
        free, tier, budget = available_bytes(), "host_bytes", config.cache.host_bytes
    shown = f"{_mib(free)} are free on {device}, the base takes {_mib(base_bytes)}, cache.{tier} allows {_mib(budget)}"
    if free == 0:
        return ok("memory", "what is free cannot be told on this system")
    if free < base_bytes:
        return problem("memory", shown, "free memory, or take a smaller base: --base (model.base)")
    if free < base_bytes + budget:
        fitting = max(MIB, (free - base_bytes) // 2)
        return warning("memory", shown, f"--set cache.{tier}={fitting // MIB * MIB}, or free memory")
    return ok("memory", shown)


def available_bytes() -> int:
    """Of host memory, what this process may still take; 0 where the system does not tell."""
    limits = [_left_in_group(), _available_in_machine()]
    return min((limit for limit in limits if limit), default=0)


def _available_in_machine() -> int:
    try:
        lines = MEMORY.read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")), 0)


def _left_in_group() -> int:
    """Of a container's limit; 0 where there is none. Cached files count as used, and are given up when others ask."""
    try:
        most, used, shares = (
            (CGROUP / name).read_text().strip() for name in ("memory.max", "memory.current", "memory.stat")
        )
        cached = dict(line.split() for line in shares.splitlines()).get("inactive_file", "0")
        return max(1, int(most) - int(used) + int(cached)) if most.isdecimal() else 0
    except (OSError, ValueError):
        return 0


def open_files(api: ApiConfig) -> Finding:
    """Each caller's connection is one; beyond the limit new ones are not accepted, and files not opened."""
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    wanted = api.max_in_flight + OWN_FILES
    if limit == resource.RLIM_INFINITY or limit >= wanted:
        return ok("open_files", "no limit" if limit == resource.RLIM_INFINITY else f"{limit} may be open")
    message = f"{limit} files may be open; api.max_in_flight {api.max_in_flight} callers with a connection each need"
    remedy = f"ulimit -n {_round_up(wanted)} before the start, LimitNOFILE={_round_up(wanted)} in a systemd unit"
    return (problem if limit < LEAST_FILES else warning)("open_files", f"{message} {wanted}", remedy)


def _round_up(number: int) -> int:
    return 1 << (number - 1).bit_length()


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / MIB:,.0f} MiB"
