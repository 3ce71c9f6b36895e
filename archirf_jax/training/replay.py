"""A step that a guard stopped: saved with all its inputs, and run again layer by layer."""

from __future__ import annotations

import functools
import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from absl import logging

from archirf_jax import sharding, untrusted
from archirf_jax.contracts import Batch, Feed, Frozen, Losses, Task, TrainState
from archirf_jax.errors import UserError
from archirf_jax.files import atomic_write
from archirf_jax.training import guard
from archirf_jax.training.checkpoints import Checkpoints
from archirf_jax.training.step_runner import StepRunner, ordered
from archirf_jax.training.update import Modules

FOLDER, STATE, BATCH, REPORT = "stopped", "state", "batch.npz", "replay.json"
KEY, FIELD = "key", "batch."  # names in BATCH: of the step's key, and what stands in front of a field's name
SHOWN = 5
Numbers = dict[str, Any]


class Layer(NamedTuple):
    """Statistics of a layer's output.

    Attributes:
        name: path of the module; [i] is the i-th of stacked ones.
        finite: whether all of its output is.
        largest: absolute value of it, of what is finite.
        root_mean_square: of it, likewise.
    """

    name: str
    finite: bool
    largest: float
    root_mean_square: float


def keep(state: TrainState, runner: StepRunner, feed: Feed, config: Any, workdir: pathlib.Path) -> None:
    """Save the state before the step, its batch and its key in `stopped/`; all processes must."""
    folder = workdir / FOLDER
    if jax.process_index() == 0:
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier stop
    sharding.agreed(0)  # all wait for that
    checkpoints = Checkpoints(folder / STATE, keep=1)
    checkpoints.save(state, config.to_dict())
    feed.close()
    batch, key = jax.jit(runner.batch)(feed.chunk(int(state.step), 1)[0], 0, state.step)
    arrays: dict[str, Any] = {FIELD + name: sharding.fetch(leaf) for name, leaf in batch.items()}
    arrays[KEY] = np.asarray(jax.random.key_data(key))
    if jax.process_index() == 0:
        atomic_write(folder / BATCH, lambda file: np.savez(file, **arrays))
    checkpoints.wait()
    checkpoints.close()


def replay(task: Task, workdir: pathlib.Path, frozen: Frozen | None = None) -> str:
    """Run the saved step again, layer by layer, and say what went wrong first.

    Args:
        task: of the run.
        workdir: of the run; a report is written next to the saved step.
        frozen: parameters of the frozen runs by name.

    Raises:
        UserError: no step was saved, or it is damaged.
    """
    folder, frozen = workdir / FOLDER, dict(frozen or {})
    if not (folder / STATE).is_dir():
        raise UserError("replay", message=f"no step of {str(workdir)!r} was stopped; there is nothing to run again")
    like = ordered(task, jax.eval_shape(lambda frozen: task.init(jax.random.key(0), frozen), frozen))
    state = Checkpoints(folder / STATE).restore(like)
    if state is None:
        raise UserError("replay", message=f"the state in {str(folder / STATE)!r} is damaged; nothing can be run again")
    batch, key = _load(folder / BATCH)
    report = _report(task, state, frozen, batch, key)
    text = _conclusion(report, state)
    whole = report | {"step": int(state.step) + 1, "conclusion": text}
    atomic_write(folder / REPORT, json.dumps(whole, indent=1))
    return text


def _load(path: pathlib.Path) -> tuple[Batch, jax.Array]:
    try:
        arrays = untrusted.read_arrays(path)
        key = jax.random.wrap_key_data(jnp.asarray(arrays.pop(KEY)), impl="threefry2x32")
    except (untrusted.Unreadable, KeyError, TypeError, ValueError) as e:
        message = f"the step in {str(path.parent)!r} is damaged ({e}); nothing can be run again"
        raise UserError("replay", message=message) from e
    return {name.removeprefix(FIELD): jnp.asarray(array) for name, array in arrays.items()}, key


def _report(task: Task, state: TrainState, frozen: Frozen, batch: Batch, key: jax.Array) -> Numbers:
    """A report on the first network and part of the batch that are not finite; else on a network that stopped."""
    report: Numbers = {}
    for name in sorted(task.updates, key=lambda name: int(state.networks[name].guard.stopped)):
        for part in range(task.updates[name].accumulation):
            report = _of_part(task, state, frozen, batch, key, name, part)
            if not all(np.isfinite(report[number]) for number in ("loss", "gradient_norm", "update_norm")):
                return report
    return report


def _of_part(
    task: Task, state: TrainState, frozen: Frozen, batch: Batch, key: jax.Array, name: str, part: int
) -> Numbers:
    update, network = task.updates[name], state.networks[name]
    params = update.projected(network)

    def mine(state: TrainState, frozen: Frozen, batch: Batch, key: jax.Array) -> tuple[Any, Losses]:
        drawn, losses = task.losses(state, frozen, batch, key, name)
        return jax.tree.map(lambda x: x[part :: update.accumulation], drawn), losses

    given = state, frozen, batch, key
    drawn = jax.jit(lambda *given: mine(*given)[0])(*given)

    def losses(params: Modules, drawn: Any, given: Any) -> jax.Array:
        return mine(*given)[1](params, drawn, part)[0]

    gradients = jax.jit(jax.grad(lambda *args: jnp.mean(losses(*args))))(params, drawn, given)
    loss, layers = _forward(losses, params, drawn, given)
    return {
        "network": name,
        "part": part,
        "loss": loss,
        "gradient_norm": float(jax.jit(optax.tree.norm)(gradients)),
        "update_norm": float(jax.jit(update.update_norm)(network, gradients)),
        "learning_rate": float(update.schedule(network.guard.updates)),
        "layers": [layer._asdict() for layer in layers],
        "params": _of_modules(params),
        "gradients": _of_modules(gradients),
    }


def _forward(losses_of: Callable[..., jax.Array], *args: Any) -> tuple[float, list[Layer]]:
    """(mean loss, what each layer did on the way to it)."""
    layers: list[Layer] = []

    def record(name: str, finite: Any, largest: Any, root_mean_square: Any) -> None:
        seen = sum(layer.name.partition("[")[0] == name for layer in layers)
        stacked = sharding.STACKED in name
        shown = f"{name}[{seen}]" if stacked else name
        layers.append(Layer(shown, bool(finite), float(largest), float(root_mean_square)))

    inside: list[str] = []

    def watch(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        name = "/".join(context.module.path) or type(context.module).__name__
        if context.method_name != "__call__" or name in inside[-1:]:  # a class calls the one that it is made from
            return call(*args, **kwargs)
        inside.append(name)
        output = call(*args, **kwargs)
        inside.pop()
        jax.debug.callback(functools.partial(record, name), *_numbers(output), ordered=True)
        return output

    with nn.intercept_methods(watch):
        losses = jax.jit(losses_of)(*args)
    loss = float(jnp.mean(losses))
    jax.effects_barrier()
    return loss, layers


def _numbers(tree: Any) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(finite, largest absolute value, root mean square) of all floating numbers in a tree."""
    leaves = [
        leaf.astype(jnp.float32).ravel() for leaf in jax.tree.leaves(tree) if jnp.issubdtype(leaf.dtype, jnp.floating)
    ]
    flat = jnp.concatenate([jnp.zeros(1), *leaves])
    fine = jnp.isfinite(flat)
    known = jnp.where(fine, flat, 0)
    largest = jnp.max(jnp.abs(known))
    unit = known / jnp.where(largest > 0, largest, 1)  # the square of a large number overflows
    return jnp.all(fine), largest, largest * jnp.sqrt(jnp.mean(jnp.square(unit)))


def _of_modules(tree: Modules) -> Numbers:
    """Name of a layer -> the numbers of its own leaves; the module's name leads where there are several."""
    skipped = int(len(tree) == 1)
    modules: dict[str, list[jax.Array]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        modules.setdefault("/".join(entry.key for entry in path[skipped:-1]), []).append(leaf)
    numbers = jax.jit(lambda modules: {name: _numbers(leaves) for name, leaves in modules.items()})(modules)
    return {
        name: {"finite": bool(finite), "largest": float(largest), "root_mean_square": float(size)}
        for name, (finite, largest, size) in numbers.items()
    }


def _conclusion(report: dict[str, Any], state: TrainState) -> str:
    layers, params, gradients = report["layers"], report["params"], report["gradients"]
    if broken := [name for name, numbers in params.items() if not numbers["finite"]]:
        return f"parameters of {', '.join(broken[:SHOWN])} are not finite before the step"
    if bad := next((layer for layer in layers if not layer["finite"]), None):
        before = max((layer["largest"] for layer in layers[: layers.index(bad)]), default=0.0)
        own = params.get(bad["name"].partition("[")[0])
        weights = f", its largest parameter {own['largest']:.3g}" if own else ""
        message = f"its output is not finite; the largest output before it is {before:.3g}{weights}"
        return f"the first layer that went wrong is {bad['name']}: {message}"
    largest = sorted(layers, key=lambda layer: -layer["largest"])[:SHOWN]
    sizes = ", ".join(f"{layer['name']} {layer['largest']:.3g}" for layer in largest)
    if not np.isfinite(report["loss"]):
        return f"what went wrong is the loss: it is not finite although all layers are; largest outputs: {sizes}"
    # A gradient runs from the loss back to the first layer: it broke at the last one where it is broken.
    order = [layer["name"].partition("[")[0] for layer in layers]
    broken = [name for name in gradients if not gradients[name]["finite"]]
    if broken:
        last = max(broken, key=lambda name: order.index(name) if name in order else -1)
        return f"the first layer that went wrong is {last}: its gradient is not finite, though all outputs are"
    if not np.isfinite(report["update_norm"]):
        return f"the update is not finite, though the gradient is: {report['learning_rate']:.3g} is its learning rate"
    guarded = state.networks[report["network"]].guard
    mean, spread = float(guarded.mean), float(guarded.spread) ** 0.5
    return (
        f"all layers and gradients are finite ({guard.REASONS.get(int(guarded.stopped), 'not stopped')}); "
        f"loss {report['loss']:.4g}, running mean {mean:.4g} with deviation {spread:.2g}; largest outputs: {sizes}"
    )


def read_report(workdir: pathlib.Path) -> Numbers:
    """What the last replay found."""
    report: Numbers = json.loads((workdir / FOLDER / REPORT).read_text())
    return report


def log_report(workdir: pathlib.Path) -> None:
    """Log the table of the last replay."""
    report = read_report(workdir)
    logging.info("%-60s %10s %12s %12s", "output of", "finite", "largest", "rms")
    for layer in report["layers"]:
        logging.info("%-60s %10s %12.4g %12.4g", *layer.values())
    for kind in ("params", "gradients"):
        logging.info("%-60s %10s %12s %12s", f"{kind} of", "finite", "largest", "rms")
        for name, numbers in report[kind].items():
            logging.info("%-60s %10s %12.4g %12.4g", name, *numbers.values())
