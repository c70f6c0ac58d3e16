"""Flags for all tests: x64, no silent rank promotion, eight host devices; collecting garbage rarely; the same draws.

Compiled programs are let go of between files where a process has become large.
"""

import gc
import importlib.metadata
import os

FLAG = "--xla_force_host_platform_device_count"
if FLAG not in os.environ.get("XLA_FLAGS", ""):
    # Compiling is most of the time of these tests, and each function runs only a few times.
    flags = f"{FLAG}=8 --xla_backend_optimization_level=0"
    flags += " --xla_llvm_disable_expensive_passes=true"
    if importlib.metadata.version("jaxlib").startswith("0.10."):  # newer ones know no other way, and end at the flag
        flags += " --xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()

import hypothesis
import jax
import pytest

gc.set_threshold(200_000)  # tracing makes many objects: with the usual threshold a third of its time goes here

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile("same", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("same")

LARGE = 3 << 30  # bytes of a process


def resident() -> int:
    """Bytes that this process holds; 0 where the system does not tell."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


@pytest.fixture(scope="module", autouse=True)
def _programs_let_go():
    """Drops compiled programs after a file; of those that the next one uses, few are the same."""
    yield
    if resident() > LARGE:
        jax.clear_caches()
        gc.collect()
