"""Device, cores, memory and open files."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest
import torch

from server.config import MIB, ApiConfig, CacheConfig, ModelConfig, ServerConfig
from server.doctor import machine
from server.doctor.finding import State

CPU = ModelConfig(device="cpu")


def test_cuda_without_a_gpu_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for build, says in ((None, "install torch's build for CUDA"), ("13.0", "nvidia-smi")):
        monkeypatch.setattr(torch.version, "cuda", build)
        found = machine.device(ModelConfig(device="cuda"))
        assert (found.name, found.state) == ("device", State.PROBLEM)
        assert "device 'cuda' asked for" in found.message
        assert says in found.remedy and "--device cpu (model.device)" in found.remedy


def test_a_device_beyond_those_there_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    found = machine.device(ModelConfig(device="cuda:5"))
    assert found.state is State.PROBLEM and "cuda:0 to cuda:1" in found.remedy


def test_an_unknown_device_names_the_known_ones() -> None:
    found = machine.device(ModelConfig(device="gpu"))
    assert found.state is State.PROBLEM and "auto, cpu or cuda (model.device)" in found.remedy


def test_a_gpu_that_torch_cannot_use_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine.shutil, "which", lambda name: f"/usr/bin/{name}")
    assert machine.device(ModelConfig()).state is State.WARNING
    assert machine.device(CPU).state is State.OK


def test_a_dtype_without_instructions_is_a_warning(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor : 0\nflags : fpu avx2\n")
    monkeypatch.setattr(machine, "CPU_FLAGS", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    assert machine.compute(CPU).state is State.OK
    found = machine.compute(ModelConfig(device="cpu", dtype="bfloat16"))
    assert found.state is State.WARNING and "bfloat16" in found.message and "model.dtype" in found.remedy
    (tmp_path / "cpuinfo").write_text("processor : 0\nflags : fpu avx512_bf16\n")
    assert machine.compute(ModelConfig(device="cpu", dtype="bfloat16")).state is State.OK


def test_a_cpu_without_avx2_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "DEFAULT")
    monkeypatch.setattr(machine.platform, "machine", lambda: "x86_64")
    found = machine.compute(CPU)
    assert found.state is State.WARNING and "AVX2" in found.message


@pytest.mark.parametrize("wrong", [{"backend": "magic"}, {"quantization": "int8", "dtype": "bfloat16"}])
def test_what_cannot_compute_is_a_problem(wrong: dict[str, str]) -> None:
    found = machine.compute(ModelConfig(device="cpu", **wrong))  # type: ignore[arg-type]
    assert found.state is State.PROBLEM and "model.backend=auto" in found.remedy


def test_more_threads_or_fronts_than_cores_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 4)
    assert machine.cores(CPU, ApiConfig()).state is State.OK
    threads = machine.cores(ModelConfig(num_threads=8), ApiConfig())
    assert threads.state is State.WARNING and "model.num_threads=4" in threads.remedy
    fronts = machine.cores(CPU, ApiConfig(frontends=4))
    assert fronts.state is State.WARNING and "--frontends 3 (api.frontends)" in fronts.remedy


@pytest.mark.parametrize(
    ("free_mib", "state", "says"),
    [
        (4096, State.OK, ""),
        (1024, State.WARNING, "cache.host_bytes"),
        (50, State.PROBLEM, "model.base"),
        (0, State.OK, ""),
    ],
)
def test_memory_is_held_against_base_and_budget(
    monkeypatch: pytest.MonkeyPatch, free_mib: int, state: State, says: str
) -> None:
    monkeypatch.setattr(machine, "available_bytes", lambda: free_mib * MIB)
    config = ServerConfig(model=CPU, cache=CacheConfig(host_bytes=2048 * MIB))
    found = machine.memory(config, 25 * MIB)  # 100 MiB in float32
    assert found.state is state and says in found.remedy


def test_what_a_container_may_take_counts_without_its_cached_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(machine, "MEMORY", tmp_path / "meminfo")
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    assert machine.available_bytes() == 0
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    4000 kB\n")
    assert machine.available_bytes() == 4000 * 1024
    (tmp_path / "memory.max").write_text("1000\n")
    (tmp_path / "memory.current").write_text("900\n")
    (tmp_path / "memory.stat").write_text("anon 400\ninactive_file 300\n")
    assert machine.available_bytes() == 400
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.available_bytes() == 4000 * 1024


@pytest.mark.parametrize(
    ("limit", "state"),
    [(100, State.PROBLEM), (1024, State.WARNING), (4096, State.OK), (resource.RLIM_INFINITY, State.OK)],
)
def test_open_files_are_held_against_the_callers(monkeypatch: pytest.MonkeyPatch, limit: int, state: State) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (limit, limit))
    found = machine.open_files(ApiConfig(max_in_flight=1024))
    assert found.state is state
    assert state is State.OK or "ulimit -n 2048" in found.remedy
