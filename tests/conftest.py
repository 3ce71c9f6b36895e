"""Fixtures that every test may use: a compilation cache, the prepared digits, and a run that was never interrupted."""

from __future__ import annotations

import functools
import gc
import os
import pathlib
from typing import Any

import pytest

# Before jax is imported anywhere: tests run on the CPU, and compiled programs are kept between runs.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
CACHE = pathlib.Path(__file__).parents[1] / ".cache" / "xla"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(CACHE))
os.environ.setdefault("XDG_CACHE_HOME", str(CACHE.parent))  # not the user's own
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.02")
# Compiling is most of the tests' time and no law depends on how well it is done; and one CPU stands for eight devices
# where a test asks for them. Processes that tests start inherit this: what they compute is the same bit for bit.
FLAGS = (
    "--xla_backend_optimization_level=0",
    "--xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters",  # where there is a choice, the faster compiler
    "--xla_cpu_parallel_codegen_split_count=1",  # programs are small, and other tests keep the cores busy
    "--xla_force_host_platform_device_count=8",
)
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")  # where in Python each operation of a program is from
os.environ.setdefault("FLAX_PROFILE", "false")  # and in which module
# Tracing makes many objects and hardly any garbage: looking for it took a sixth of the tests' time.
gc.set_threshold(100_000, 20, 100)


def pytest_collection_modifyitems() -> None:
    """What JAX and Flax do again and again is done once; neither is a public interface."""
    from flax.core import Scope
    from jax._src.interpreters import mlir

    # Programs are lowered in one context of MLIR, which takes as long to make as a small program to compile.
    if make := getattr(mlir, "make_ir_context", None):
        mlir.make_ir_context = functools.cache(make)
    Scope.param = _checked_once(Scope.param)


def _checked_once(param: Any) -> Any:
    """Of `Scope.param`: at each use of a parameter it traces the initializer, to see that the shape is the same."""
    seen = set()

    def of_scope(self: Any, name: str, init: Any, *arguments: Any, **options: Any) -> Any:
        if not arguments or not self.has_variable("params", name):
            return param(self, name, init, *arguments, **options)
        value = self.get_variable("params", name)
        use = (init, str(arguments), value.shape)
        if use in seen:
            self.reserve(name, "params")
            return value
        value = param(self, name, init, *arguments, **options)
        seen.add(use)
        return value

    return of_scope


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: Any, log: Any) -> Any:
    """Neighbours run in one process, where they share fixtures and compiled programs; one that is idle takes over."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getvalue("dist") == "load" else None


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder in which the digits are prepared."""
    from archirf_jax.data.preparation import prepare

    path = tmp_path_factory.mktemp("data")
    prepare("digits", str(path))
    return path


@pytest.fixture(scope="session")
def whole_run(data_dir: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """The run directory of a tiny training that nothing interrupted, and what it said in messages.txt."""
    from tests import running

    workdir = tmp_path_factory.mktemp("runs") / "whole"
    with running.messages() as said:
        assert running.train(workdir, data_dir) == 0
    (workdir / "messages.txt").write_text("\n".join(said))
    return workdir
