"""Checks that this device computes correctly."""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
from collections.abc import Callable
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.data.preparation import prepare
from archirf_jax.models import attention, binding
from archirf_jax.tasks.building import make_task, resolve
from archirf_jax.training import devices
from benchmarks import crash
from benchmarks.gpu.networks import Compiled, compiled, counted_memory, random_batch
from benchmarks.gpu.results import Results, of_exception, started
from benchmarks.machine import describe
from configs import adm_ddpm, dit_ddpm, dit_edm, dit_rf, edm2_edm, edm2_rf, mmdit_rf
from tests.golden import adm, dit, edm2, mmdit
from tests.golden.cases import compare, load

GOLDEN = pathlib.Path(__file__).parents[2] / "tests/golden"
CONFIGS = (dit_rf, dit_ddpm, dit_edm, mmdit_rf, adm_ddpm, edm2_rf, edm2_edm)
# Golden cases whose networks are built by a name in this module, which may be made to compute in bfloat16.
BUILT = {"dit": (dit, "DiT"), "mmdit": (mmdit, "MMDiT"), "adm": (adm, "ADMUNet"), "edm2": (edm2, "EDM2UNet")}
HALF_ERROR = 1e-2
# (batch, queries, keys, heads, width), and whether keys have lengths.
ATTENTION = (
    ((2, 256, 256, 16, 72), False),
    ((2, 257, 257, 4, 64), False),
    ((2, 333, 333, 12, 64), True),
    ((2, 64, 77, 6, 64), True),
)
KILLED_STEPS = 400
SHALLOW = {"depth": 1, "hidden_size": 32}
FEW = 16  # images of a step that only has to be right
THREADS = 8
_trainings: dict[str, Compiled] = {}  # by configuration


def planned_memory(toy: bool) -> dict[str, Any]:
    """The planned bytes of a training and those that the device counts: the first row, as the counter never falls."""
    config = dit_rf.get_config("digits" if toy else "openmoji")
    made = in_half(config, toy, FEW if toy else config.batch_size)
    state, batch = made.begin()
    for _ in range(2):
        state, metrics = made.step(state, {}, batch, jax.random.key(1))
    jax.block_until_ready(metrics)
    taken = made.step.memory_analysis()
    known = devices.of(jax.devices()[0])
    name = known.name if known else "h100"
    variant = "" if toy else ":openmoji"
    command = [sys.executable, "-m", "archirf_jax.plan", f"--config=configs/dit_rf.py{variant}", f"--device={name}"]
    flags = ["--num_classes=10", "--config.model.dtype=bfloat16", "--json"]
    small = {"batch_size": FEW} | {f"model.{field}": value for field, value in SHALLOW.items()}
    flags += [f"--config.{field}={value}" for field, value in small.items() if toy]
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run([*command, *flags], capture_output=True, text=True, env=environment, check=True)
    memory = json.loads(done.stdout)["tried"][0][1]
    return {
        "planned_bytes": sum(memory.values()),
        "program_bytes": taken.argument_size_in_bytes + taken.temp_size_in_bytes,
        "counted_bytes": counted_memory(),
        "device": name,
    }


def in_half(config: Any, toy: bool, batch_size: int) -> Compiled:
    """The training of a network in bfloat16, once for the same one."""
    config.model.update(SHALLOW if toy else {}, dtype="bfloat16")
    config.batch_size = batch_size
    resolve(config, 10)
    key = config.to_json_best_effort()
    if key not in _trainings:
        _trainings[key] = compiled(config, batch_size)
    return _trainings[key]


def cases(half: bool, toy: bool) -> list[pathlib.Path]:
    """The golden cases that are computed in float32, or in bfloat16."""
    found = []
    for path in sorted(GOLDEN.glob("*.npz")):
        built = path.stem.partition("_")[0] in BUILT and path.stem not in ("adm_classifier", "edm2_training")
        if (built or not half) and (not toy or path.stem in ("dit_patch4", "flow_euler_10")):
            found.append(path)
    return found


def golden(results: Results, half: bool, toy: bool) -> dict[str, Any]:
    """The largest relative error of each golden case, in float32 or of the networks in bfloat16."""
    errors: dict[str, float] = {}
    failed: dict[str, str] = {}
    wrong = []
    with contextlib.ExitStack() as stack:
        for module, name in BUILT.values() if half else ():
            network = functools.partial(getattr(module, name), dtype=jnp.bfloat16)
            stack.enter_context(mock.patch.object(module, name, network))
        pool = concurrent.futures.ThreadPoolExecutor(THREADS)
        futures = {pool.submit(_compare, path): path.stem for path in cases(half, toy)}
        done, late = concurrent.futures.wait(futures, timeout=max(results.left - 5, 1))
        pool.shutdown(wait=False, cancel_futures=True)
        for future in done:
            error = future.exception()
            if error is not None:
                failed[futures[future]] = of_exception(error)
                continue
            errors[futures[future]], allowed = future.result()
            if errors[futures[future]] > (HALF_ERROR if half else allowed):
                wrong.append(futures[future])
    return {
        "errors": dict(sorted(errors.items())),
        "largest": max(errors.values(), default=None),
        "wrong": sorted(wrong),
        "failed": failed,
        "late": sorted(futures[future] for future in late),
    }


def _compare(path: pathlib.Path) -> tuple[float, float]:
    return compare(load(path))


def attention_errors(toy: bool) -> dict[str, Any]:
    """Values and gradients of the attention that is chosen here for bfloat16, against the plain one in float32."""
    found = {}
    for (batch, n, m, heads, width), lengths in ATTENTION[1::2] if toy else ATTENTION:
        random = np.random.default_rng(0)  # which compiles nothing
        q, slope, k, v = (
            jnp.asarray(random.normal(size=(batch, length, heads, width)).astype(np.float32)) for length in (n, n, m, m)
        )
        of_keys = jnp.asarray([m, m // 3]) if lengths else None

        def results(
            attend: Callable[..., jax.Array], *qkv: jax.Array, of_keys: Any = of_keys, slope: Any = slope
        ) -> Any:
            out, pull = jax.vjp(lambda *each: attend(*each, key_lengths=of_keys), *qkv)
            return out, *pull(slope.astype(out.dtype))

        half = [x.astype(jnp.bfloat16) for x in (q, k, v)]
        ours = jax.jit(functools.partial(results, attention.attend))(*half)
        with jax.default_matmul_precision("highest"):
            exact = jax.jit(functools.partial(results, attention.plain))(*(x.astype(jnp.float32) for x in half))
        errors = jax.tree.map(_error, ours, exact)
        found[f"{n}x{m}x{heads}x{width}{', lengths' if lengths else ''}"] = max(errors)
    return {"errors": found, "largest": max(found.values())}


def _error(ours: Any, exact: Any) -> float:
    half, whole = (np.asarray(each, np.float32) for each in (ours, exact))
    return float(np.max(np.abs(half - whole)) / np.max(np.abs(whole)))


def forward_mode(toy: bool) -> dict[str, Any]:
    """The forward derivative of a network on the path that has one, in bfloat16 against float32."""
    config = dit_rf.get_config()
    config.model.update(SHALLOW if toy else {})
    resolve(config, 10)
    slopes: list[jax.Array] = []
    params: Any = None
    random = np.random.default_rng(0)
    for dtype in ("bfloat16", "float32"):
        config.model.dtype = dtype
        task: Any = make_task(config)
        params = params or jax.tree.map(  # the same for both
            lambda leaf: jnp.asarray(
                np.asarray(leaf) + np.float32(0.05) * random.normal(size=leaf.shape).astype(np.float32)
            ),
            jax.jit(lambda key, task=task: task.init_params(key, {}))(jax.random.key(0))["model"],
        )
        batch = random_batch(task, 4)
        answer = functools.partial(_answer, task.module, params, batch)
        slope = jax.jit(lambda x, answer=answer: jax.jvp(answer, (x,), (jnp.ones_like(x),))[1])
        slopes.append(slope(batch["image"]))
    return {"largest": _error(*slopes)}


def _answer(module: Any, params: Any, batch: Any, x: jax.Array) -> jax.Array:
    bound = binding.bind(module, params, higher_derivatives=True)
    return bound(x, jnp.full(len(x), 500.0), {"label": batch["label"]})[0]


def half_step(config: Any, toy: bool) -> dict[str, Any]:
    """A step of a small network in bfloat16."""
    made = in_half(config, toy, FEW)
    state, batch = made.begin()
    _, metrics = made.step(state, {}, batch, jax.random.key(1))
    return {"loss": float(metrics["loss"][0]), "skipped": float(metrics["skipped"][0])}


def resumed(toy: bool) -> dict[str, Any]:
    """A training that is killed and goes on, against one that is not, under deterministic operations."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true"
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"XLA_FLAGS": flags, "JAX_COMPILATION_CACHE_DIR": f"{folder}/xla"}
        return crash.run(
            1, 60 if toy else KILLED_STEPS, 0, pathlib.Path(folder), moments=("training",), environment=environment
        )


def main() -> None:
    """Check all, in threads, because almost all of the time goes into compiling small programs."""
    results, toy, _ = started()
    results.measure("planned memory", functools.partial(planned_memory, toy))  # alone: the counter is of the process
    results.add("about", describe())
    checks: dict[str, Callable[[], dict[str, Any]]] = {
        "attention in bfloat16": functools.partial(attention_errors, toy),
        "killed and resumed": functools.partial(resumed, toy),
        "forward derivative in bfloat16": functools.partial(forward_mode, toy),
    }
    for module in CONFIGS[: 1 if toy else None]:
        name = f"step in bfloat16, {module.__name__.rpartition('.')[2]}"
        checks[name] = functools.partial(half_step, module.get_config(), toy)
    with tempfile.TemporaryDirectory() as folder:
        if results.wants("killed and resumed"):
            prepare("digits", folder)  # before there are threads: tfds's lazy imports change those of others meanwhile
    with concurrent.futures.ThreadPoolExecutor(THREADS) as pool:
        for name, check in checks.items():
            pool.submit(results.measure, name, check)
    # Each by itself: the networks of the second are changed for as long as it runs.
    results.measure("golden cases in float32", functools.partial(golden, results, half=False, toy=toy))
    results.measure("golden cases in bfloat16", functools.partial(golden, results, half=True, toy=toy))
    sys.stdout.flush()
    os._exit(0)  # cases that are late are not waited for


if __name__ == "__main__":
    main()
