"""Memory that a thread gives back stays with a process that computes on a CPU, unless the user chose otherwise."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from archirf_jax.launch import host
from tests import running

FAULTS = '''"""Print how many pages are mapped anew for the second of two blocks that a thread takes and gives back."""
import ctypes, resource, sys, threading
from archirf_jax.errors import UserError

library = ctypes.CDLL(None)
library.malloc.restype = ctypes.c_void_p

def once():
    block = ctypes.c_void_p(library.malloc(ctypes.c_size_t(3 << 30)))  # more than glibc can be told to keep at most
    ctypes.memset(block, 1, 256 << 20)
    library.free(block)

def twice():
    once()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    once()
    print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

def main(args=None):
    thread = threading.Thread(target=twice)
    thread.start()
    thread.join()

if sys.argv.pop() == "command":
    from archirf_jax.launch.cli import Command
    Command(__doc__, device=False).run(main)
import archirf_jax
try:
    archirf_jax.open("nowhere")
except UserError:
    main()
'''
PAGES = (256 << 20) // (2 << 20)  # that are written, if they are huge ones
NOT_GLIBC = not (sys.platform == "linux" and (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc"))


def faults(how: str, **chosen: str) -> int:
    environment = {name: value for name, value in running.environment().items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", FAULTS, how],
        env=environment | {"PYTHONPATH": str(running.REPOSITORY), "JAX_PLATFORMS": "cpu"} | chosen,
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(NOT_GLIBC, reason="other C libraries have other rules")
@pytest.mark.parametrize("how", ["command", "library"])
def test_memory_that_a_thread_gives_back_is_kept(how: str) -> None:
    assert faults(how) < PAGES / 2


@pytest.mark.skipif(NOT_GLIBC, reason="other C libraries have other rules")
@pytest.mark.parametrize("chosen", [{"MALLOC_ARENA_MAX": "4"}, {"JAX_PLATFORMS": "cuda,cpu"}])
def test_memory_goes_back_where_the_user_chose_or_an_accelerator_computes(chosen: dict[str, str]) -> None:
    assert faults("command", **chosen) >= PAGES


def test_no_import_starts_the_threads_of_jax_before_a_process_is_set_up() -> None:
    setting_up = [path for path in running.REPOSITORY.glob("benchmarks/*.py") if "host.set_up()" in path.read_text()]
    modules = ["archirf_jax.launch.library", "archirf_jax.main", *(f"benchmarks.{path.stem}" for path in setting_up)]
    assert len(modules) > 4
    code = f"import {', '.join(modules)}; from jax._src import xla_bridge"
    done = subprocess.run(
        [sys.executable, "-c", f"{code}; print(xla_bridge.backends_are_initialized())"],
        env=running.environment() | {"PYTHONPATH": str(running.REPOSITORY)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["False"]


def flags(monkeypatch: pytest.MonkeyPatch, platforms: str, given: str) -> str:
    """XLA's, where JAX's packages for a GPU are installed."""
    monkeypatch.setattr(host.importlib.util, "find_spec", lambda _: object())
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    monkeypatch.setenv("XLA_FLAGS", given)
    host.set_gpu_flags()
    return os.environ["XLA_FLAGS"]


def test_flags_for_a_gpu_stand_before_those_of_the_user_which_count(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = host.GPU_FLAGS.replace("=0", "=8")
    assert flags(monkeypatch, "cuda,cpu", chosen) == f"{host.GPU_FLAGS} {chosen}"
    assert flags(monkeypatch, "", "") == host.GPU_FLAGS
    assert flags(monkeypatch, "", f"{host.GPU_FLAGS} {chosen}") == f"{host.GPU_FLAGS} {chosen}"  # set up before
    assert flags(monkeypatch, "cpu", chosen) == chosen


def test_jaxlib_knows_the_flags_for_a_gpu() -> None:
    """It ends a process that has others."""
    code = "import jax; print(jax.devices()[0].platform)"
    environment = running.environment(XLA_FLAGS=host.GPU_FLAGS, JAX_PLATFORMS="cpu")
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["cpu"]
