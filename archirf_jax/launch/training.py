"""A training from a configuration and a data set to a run directory: what the command and the library share."""

from __future__ import annotations

import contextlib
import pathlib
from typing import Any

import jax
from absl import logging
from flax.errors import FlaxError

from archirf_jax import registry, sharding
from archirf_jax.contracts import Feed, Frozen, Task
from archirf_jax.data import tokenizer
from archirf_jax.data.dataset import Dataset
from archirf_jax.data.feeds import make_feed
from archirf_jax.data.fields import shapes
from archirf_jax.errors import UserError, listed, nearest
from archirf_jax.files import atomic_write, expand
from archirf_jax.launch import caches, outputs, previews, prompts, run_directory
from archirf_jax.launch import config as configuration
from archirf_jax.launch import runs as frozen_runs
from archirf_jax.launch.runs import Run
from archirf_jax.tasks.building import make_task, resolve
from archirf_jax.training import devices, tracing
from archirf_jax.training.checkpoints import Checkpoints
from archirf_jax.training.devices import GIB
from archirf_jax.training.initial_weights import Weights, fit
from archirf_jax.training.loop import train
from archirf_jax.training.profiling import Profile
from archirf_jax.training.start import check_new
from archirf_jax.training.upkeep import check_best
from archirf_jax.visuals import pictures


def train_run(
    config: Any,
    dataset: Dataset,
    workdir: pathlib.Path,
    *,
    again: str,
    change_config: bool = False,
    profile: Profile | None = None,
    model: Any = None,
    hard_exit: bool = False,
) -> bool:
    """Train what a configuration describes, from the newest checkpoint in `workdir` where there is one.

    Everything that can be wrong is found before the directory is claimed.

    Args:
        config: checked; what the data decides is filled in.
        dataset: the examples.
        workdir: the run directory.
        again: how the training is resumed, for messages.
        change_config: go on with a run that began with another configuration.
        profile: which steps to record.
        model: a network in place of the one that the configuration names.
        hard_exit: a second signal ends the process at once, as a command wants it and a notebook does not.

    Returns:
        True at the end, False when a signal stopped the run after a save.

    Raises:
        UserError: something does not fit, or the guard stopped the run, or a checkpoint cannot be written.
    """
    resolve(config, dataset.num_classes or 1)
    runs = frozen_runs.named(config, workdir)
    caches.fit(config, runs)
    prompts.check_tokenizer(config, dataset.tokenizer, runs)
    with registry.refuse_below(workdir, config.data.dir):
        task = make_task(config, runs, model)
    feed = make_feed(dataset, config)
    check_best(config, check_step(task, config))
    check_buckets(task, config, feed)
    saved = Checkpoints(workdir / "checkpoints")
    if saved.steps():
        _check_trained(saved, workdir)
    weights = None if saved.steps() else initial_weights(config, task)
    if change_config:
        saved.check_fits(tracing.init_shapes(task, sharding.shaped(_shapes(runs), sharding.from_config(config))))
        if not saved.steps():
            check_new(workdir)
    with contextlib.ExitStack() as stack:
        more: dict[str, Any] = {"weights": weights}
        if jax.process_index() == 0:
            found = identity(dataset, runs)
            held = stack.enter_context(configuration.claimed(config, workdir, change_config, found))
            frozen_runs.keep(runs, workdir)
            _keep_tokenizer(dataset, workdir)
            more["still_ours"] = held.check
        sharding.agreed(0)  # the other processes wait for the copies
        frozen = caches.frozen_params(config, frozen_runs.named(config, workdir))
        if names := outputs.named_rows(dataset.class_names, range(len(dataset.class_names))):
            logging.info("classes: %s", listed([f"{i} {name}" for i, name in enumerate(names)]))
        previews.prepare(task, dataset, config)
        return train(task, feed, config, workdir, frozen, again=again, profile=profile, hard_exit=hard_exit, **more)


def _keep_tokenizer(dataset: Dataset, workdir: pathlib.Path) -> None:
    """Copy the tokenizer of the captions into the run, which then needs no data to turn texts into tokens."""
    place = workdir / tokenizer.FILE
    if dataset.tokenizer is not None and not place.exists():
        atomic_write(place, dataset.tokenizer.content)


def check_step(task: Task, config: Any) -> frozenset[str]:
    """Trace a step on the shapes that the configuration declares; the names of its metrics.

    Raises:
        UserError: something does not fit.
    """
    for name in config.networks:
        if name not in task.updates:
            hint = nearest(name, task.updates)
            what = f"is not a network of this task; there are {', '.join(task.updates)}{hint}"
            raise UserError(f"networks.{name}", message=what)
    fields: Any = task.fields  # type: ignore[attr-defined]
    mesh = sharding.from_config(config)
    frozen = sharding.shaped(_shapes(task.frozen), mesh)
    state = tracing.init_shapes(task, frozen)
    _check_memory(state, config)
    _, metrics = tracing.step_shapes(task, state, frozen, shapes(fields, config.batch_size), mesh)
    if hasattr(task, "sampler"):
        task.sampler(task.sampling)  # type: ignore[attr-defined]
        rows, size = config.sample.classes, config.data.image_size
        if getattr(task, "labels_alone", True):
            rows = min(rows, config.data.num_classes)
        pictures.check_side("sample.classes", rows, size)
        pictures.check_side("sample.per_class", config.sample.per_class, size)
    return frozenset(metrics)


def check_buckets(task: Task, config: Any, feed: Feed) -> None:
    """Trace a step on every other shape that the batches of a feed have.

    Raises:
        UserError: the network does not take images of such sides, or its parameters depend on them.
    """
    buckets = getattr(feed, "buckets", None)
    if buckets is None:
        return
    mesh = sharding.from_config(config)
    frozen = sharding.shaped(_shapes(task.frozen), mesh)
    state = tracing.init_shapes(task, frozen)
    batch = shapes(task.fields, config.batch_size)  # type: ignore[attr-defined]
    for height, width in buckets.sides:
        image = batch["image"]
        mine = batch | {"image": jax.ShapeDtypeStruct((image.shape[0], height, width, image.shape[-1]), image.dtype)}
        try:
            tracing.step_shapes(task, state, frozen, mine, mesh)
        except (UserError, FlaxError, TypeError, ValueError) as e:
            reason = " ".join(str(e).split())[:200]
            what = f"asks for images of {height}x{width}, which {config.model.name} does not take: {reason}"
            raise UserError("data.buckets", tuple(config.data.buckets), what) from e


def _check_memory(state: Any, config: Any) -> None:
    """Raise a UserError if not even the state fits; a CPU would swap for hours, and the system ends the process."""
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    memory, machines = devices.memory(), jax.process_count()
    parts = config.mesh.fsdp if jax.default_backend() != "cpu" else min(config.mesh.fsdp, machines)
    if memory is not None and held / parts > memory:
        raise UserError(
            "model",
            message=f"takes {held / parts / GIB:,.0f} GiB for parameters, averages and the optimizer's state alone, "
            f"and the device has {memory / GIB:,.0f}; choose a smaller network or more mesh.fsdp",
        )


def _check_trained(saved: Checkpoints, workdir: pathlib.Path) -> None:
    """Raise a UserError where there are weights alone, which were imported or averaged afterwards."""
    if saved.networks(saved.steps()[0]) == [run_directory.NETWORK]:
        what = "holds weights without the state of a training; begin from them by --init_from, in another directory"
        raise UserError("workdir", str(workdir), what)


def initial_weights(config: Any, task: Task) -> Weights | None:
    """The weights of the run `config.init_from` that fit the task's main network; None where it names none.

    Raises:
        UserError: there is no such run, or nothing of it fits.
    """
    if config.init_from is None:
        return None
    run = frozen_runs.open_run(expand(config.init_from, "init_from"), field="init_from")
    state = tracing.init_shapes(task, sharding.shaped(_shapes(task.frozen), sharding.from_config(config)))
    found = fit(state.networks[next(iter(task.updates))].params, run.params)
    if not found.taken:
        names = f"{run.config.model.name} there, {config.model.name} here"
        raise UserError(
            "init_from", config.init_from, f"holds no weights that fit this network by name and shape; {names}"
        )
    logging.info("begun from %s (step %d): %s", config.init_from, run.step, found)
    return found.taken


def identity(dataset: Dataset, runs: dict[str, Run]) -> dict[str, Any]:
    """The identity of a run apart from its configuration: data, frozen runs, random numbers, precision."""
    return {
        "class_names": list(dataset.class_names),
        "images": len(dataset),
        "data_digest": dataset.digest,
        "frozen": {name: run.digest() for name, run in runs.items()},
        "random_generator": "threefry2x32" if jax.config.jax_threefry_partitionable else "threefry2x32, in one piece",  # type: ignore[attr-defined]
        "precision": "float64" if jax.config.jax_enable_x64 else "float32",  # type: ignore[attr-defined]
    }


def _shapes(runs: Any) -> Frozen:
    return {name: run.shapes or run.params for name, run in runs.items()}
