"""A step that the guard would not let be done: kept with all that went into it, and run again layer by layer."""

from __future__ import annotations

import functools
import json
import pathlib
import shutil
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from archirf_jax import sharding
from archirf_jax.errors import UserError
from archirf_jax.training import guard
from archirf_jax.training.advance import Advance, Feed, Task
from archirf_jax.training.checkpoints import Checkpoints
from archirf_jax.training.state import TrainState

FOLDER, STATE, BATCH, REPORT = "stopped", "state", "batch.npz", "replay.json"
SHOWN = 5


class Layer(NamedTuple):
    """What a layer did.

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


def keep(state: TrainState, advance: Advance, feed: Feed, config: Any, workdir: pathlib.Path) -> None:
    """Save the state before the step, its batch and its key in `stopped/`; all processes must."""
    folder = workdir / FOLDER
    if jax.process_index() == 0:
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier stop
    sharding.agreed(0)  # all wait for that
    checkpoints = Checkpoints(folder / STATE, keep=1)
    checkpoints.save(state, config.to_dict())
    feed.close()
    batch, key = jax.jit(advance.batch)(feed.chunk(int(state.step), 1), 0, state.step)
    arrays = [sharding.fetch(leaf) for leaf in jax.tree.leaves(batch)]
    if jax.process_index() == 0:
        np.savez(folder / BATCH, *arrays, key=np.asarray(jax.random.key_data(key)))
    checkpoints.wait()
    checkpoints.close()


def replay(task: Task, config: Any, workdir: pathlib.Path, as_batch: Any) -> str:
    """Run the kept step again, tell every layer's numbers, and say which one went wrong first.

    Args:
        task: of the run.
        config: of the run.
        workdir: of the run; a report is written beside the kept step.
        as_batch: makes a batch of its arrays.

    Raises:
        UserError: no step was kept.
    """
    folder = workdir / FOLDER
    if not (folder / BATCH).exists():
        raise UserError(f"--replay: no step of {str(workdir)!r} was stopped; there is nothing to run again")
    like = jax.eval_shape(task.init, jax.random.key(0))
    state = Checkpoints(folder / STATE).restore(like)
    if state is None:
        raise UserError(f"--replay: the state in {str(folder / STATE)!r} is damaged")
    with np.load(folder / BATCH) as file:
        key = jax.random.wrap_key_data(file["key"])
        batch = as_batch(*(file[f"arr_{i}"] for i in range(len(file.files) - 1)))
    params = task.constrained(state.params)
    drawn = jax.jit(task.draw)(state, batch, key)
    report = _report(task, params, drawn, key, config.accumulation)
    text = _conclusion(report, state)
    (folder / REPORT).write_text(json.dumps(report | {"step": int(state.step) + 1, "conclusion": text}, indent=1))
    return text


def _report(task: Task, params: Any, drawn: Any, key: jax.Array, parts: int) -> dict[str, Any]:
    """The numbers of the first part of the batch that goes wrong, or of the last."""
    for part in range(parts):
        mine = jax.tree.map(lambda x, part=part: x[part::parts], drawn)
        loss, layers = _forward(task, params, mine, key, part)
        gradients = jax.jit(jax.grad(lambda p, d, i=part: jnp.mean(task.losses(key)(p, d, i)[0])))(params, mine)
        numbers = {"params": _of_modules(params), "gradients": _of_modules(gradients)}
        report = {"part": part, "loss": loss, "layers": [layer._asdict() for layer in layers], **numbers}
        if not np.isfinite(loss) or not all(value["finite"] for value in numbers["gradients"].values()):
            break
    return report


def _forward(task: Task, params: Any, drawn: Any, key: jax.Array, part: int) -> tuple[float, list[Layer]]:
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
        losses = jax.jit(lambda p, d: task.losses(key)(p, d, part)[0])(params, drawn)
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
    unit = known / jnp.where(largest > 0, largest, 1)  # the square of a large number is no number
    return jnp.all(fine), largest, largest * jnp.sqrt(jnp.mean(jnp.square(unit)))


def _of_modules(tree: Any) -> dict[str, Any]:
    """Name of a module -> the numbers of its own leaves."""
    modules: dict[str, list[jax.Array]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        modules.setdefault("/".join(entry.key for entry in path[:-1]), []).append(leaf)
    told = {name: _numbers(leaves) for name, leaves in modules.items()}
    return {
        name: {"finite": bool(finite), "largest": float(largest), "root_mean_square": float(size)}
        for name, (finite, largest, size) in told.items()
    }


def _conclusion(report: dict[str, Any], state: TrainState) -> str:
    layers, params, gradients = report["layers"], report["params"], report["gradients"]
    if broken := [name for name, numbers in params.items() if not numbers["finite"]]:
        return f"parameters of {', '.join(broken[:SHOWN])} are not finite before the step"
    if bad := next((layer for layer in layers if not layer["finite"]), None):
        before = max((layer["largest"] for layer in layers[: layers.index(bad)]), default=0.0)
        own = params.get(bad["name"].partition("[")[0])
        weights = f", its largest parameter {own['largest']:.3g}" if own else ""
        told = f"its output is not finite; the largest output before it is {before:.3g}{weights}"
        return f"the first layer that went wrong is {bad['name']}: {told}"
    largest = sorted(layers, key=lambda layer: -layer["largest"])[:SHOWN]
    sizes = ", ".join(f"{layer['name']} {layer['largest']:.3g}" for layer in largest)
    if not np.isfinite(report["loss"]):
        return f"what went wrong is the loss: all layers are finite, it is not; largest outputs: {sizes}"
    # A gradient runs from the loss back to the first layer: it broke at the last one where it is broken.
    order = [layer["name"].partition("[")[0] for layer in layers]
    broken = [name for name in gradients if not gradients[name]["finite"]]
    if broken:
        last = max(broken, key=lambda name: order.index(name) if name in order else -1)
        return f"the first layer that went wrong is {last}: its gradient is not finite, though all outputs are"
    mean, spread = float(state.guard.mean), float(state.guard.spread) ** 0.5
    return (
        f"all layers and gradients are finite ({guard.REASONS.get(int(state.guard.stopped), 'not stopped')}); "
        f"loss {report['loss']:.4g}, running mean {mean:.4g} with deviation {spread:.2g}; largest outputs: {sizes}"
    )


def tell(workdir: pathlib.Path) -> None:
    """Log the table of the last replay."""
    report = json.loads((workdir / FOLDER / REPORT).read_text())
    logging.info("%-60s %10s %12s %12s", "output of", "finite", "largest", "rms")
    for layer in report["layers"]:
        logging.info("%-60s %10s %12.4g %12.4g", *layer.values())
    for kind in ("params", "gradients"):
        logging.info("%-60s %10s %12s %12s", f"{kind} of", "finite", "largest", "rms")
        for name, numbers in report[kind].items():
            logging.info("%-60s %10s %12.4g %12.4g", name, *numbers.values())
