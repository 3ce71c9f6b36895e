"""Runs: a configuration and one set of weights, whether trained, imported or averaged afterwards."""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from archirf_jax import registry
from archirf_jax.contracts import Frozen, Params, Task
from archirf_jax.data import tokenizer
from archirf_jax.data.fields.caption import KIND
from archirf_jax.data.images import to_float, to_uint8
from archirf_jax.errors import UserError, listed
from archirf_jax.files import expand
from archirf_jax.launch import config as configuration
from archirf_jax.launch import run_directory
from archirf_jax.tasks.building import make_task
from archirf_jax.tasks.sizing import at_size
from archirf_jax.training.checkpoints import Checkpoints

GIVEN = "given"  # the name of a network that has to be given when the run is opened
EMA = "ema"
HOW = (
    *("model.dtype", "model.remat", "model.scan", "first_stage.sample", "first_stage.decode_batch"),
    *("first_stage.decode_tile", "first_stage.decode_overlap"),
)


@dataclasses.dataclass(eq=False)
class Run:
    """What a run directory holds.

    Attributes:
        directory: of the run.
        config: its resolved configuration.
        task: built from it.
        runs: the frozen runs that the task needs, by name.
        at: the checkpoint that was asked for; None = the newest.
        average: which moving average the parameters are.
        field: how messages call the directory.
        data: the set that it was trained on, where it is at hand.
    """

    directory: pathlib.Path
    config: ml_collections.ConfigDict
    task: Task
    runs: Mapping[str, Run]
    at: int | None = None
    average: str = EMA
    field: str = "workdir"
    data: Any = None

    @property
    def step(self) -> int:
        """The step of the checkpoint."""
        return self._restored[0]

    @property
    def params(self) -> dict[str, Params]:
        """The average's parameters by module, in the types that they were saved in."""
        return self._restored[1]

    @functools.cached_property
    def frozen(self) -> Frozen:
        """Parameters of the frozen runs by name."""
        return {name: run.params for name, run in self.runs.items()}

    @functools.cached_property
    def shapes(self) -> dict[str, Params] | None:
        """Shapes of the parameters by module, in their own types; None where only the checkpoint knows them."""
        if not hasattr(self.task, "init_params"):
            return None
        frozen = {name: run.shapes or run.params for name, run in self.runs.items()}
        found = jax.eval_shape(self.task.init_params, jax.random.key(0), frozen)
        return self._as_saved(jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), found))

    def _as_saved(self, shapes: dict[str, Params]) -> dict[str, Params]:
        if not (self.directory / "checkpoints").is_dir():
            return shapes
        checkpoints = Checkpoints(self.directory / "checkpoints")
        try:
            found: dict[str, Params] = checkpoints.average_as_saved(shapes, self.at, self.average)
            return found
        finally:
            checkpoints.close()

    @functools.cached_property
    def _restored(self) -> tuple[int, dict[str, Params]]:
        checkpoints = Checkpoints(self.directory / "checkpoints")
        try:
            shapes = self.shapes or checkpoints.average_shapes(self.at, self.average)
            step, params = checkpoints.restore_average(shapes, self.at, self.average)
            self._check_same(step, checkpoints.config(step))
            return step, params
        except UserError as e:
            field = self.field if self.at is None else self.field.removesuffix("workdir") + "step"
            raise e if e.field else UserError(field, message=str(e)) from e
        finally:
            checkpoints.close()

    def _check_same(self, step: int, saved: dict[str, Any]) -> None:
        """Raise a UserError where config.json says of the network something else than the checkpoint does."""
        there, here = (configuration.flat(_architecture(each)) for each in (saved, self._written()))
        differing = [name for name, value in there.items() if name in here and here[name] != value and _decides(name)]
        if differing:
            what = listed([f"{name}: {there[name]!r} there, {here[name]!r} here" for name in differing], most=4)
            raise UserError(
                self.field,
                str(self.directory),
                f"has a config.json that differs from that of its checkpoint of step {step} ({what}); mend it, or go "
                "on with the training to its next checkpoint",
            )

    def _written(self) -> dict[str, Any]:
        return configuration.load(self.directory, self.field).to_dict()

    def sample(self, labels: Any = None, per_class: int = 8, seed: int = 0, **how: Any) -> np.ndarray:
        """uint8 images (N, H, W, C), classes in the order asked, `per_class` each; see `sampling.sample`."""
        from archirf_jax.launch import sampling

        return sampling.sample_run(self, labels, per_class, seed, **how)

    def at_size(self, height: int, width: int) -> Run:
        """The run, drawing images of another size in pixels; raises as `tasks.sizing.at_size`."""
        sized = copy.copy(self)  # with what is read already
        task: Any = at_size(self.task, height, width)
        sized.task, sized.config = task, self.config if task is self.task else task.config
        return sized

    def encode(self, images: np.ndarray) -> np.ndarray:
        """What the run diffuses of uint8 images (N, H, W, C), by the modes of their distributions, float32.

        Of an autoencoder's run: its latents, not normalized.
        """
        return self._through("encode", to_float(jnp.asarray(images)))

    def decode(self, latents: np.ndarray) -> np.ndarray:
        """uint8 images (N, H, W, C) of what `encode` gives, or of `sample(..., latents=True)`."""
        return to_uint8(self._through("decode", jnp.asarray(latents, jnp.float32)))

    def _through(self, way: str, x: jax.Array) -> np.ndarray:
        task: Any = self.task
        if hasattr(task, "latent"):
            return np.asarray(jax.jit(getattr(task, way))(self.params, x))
        if not hasattr(task, "first_stage"):
            what = f"is the run of the task {self.config.task}, which neither encodes nor decodes images"
            raise UserError(self.field, str(self.directory), what)
        stage = task.first_stage
        if way == "decode":
            return np.asarray(jax.jit(stage.decode)(self.frozen, x))
        if hasattr(stage, "sample"):
            stage = dataclasses.replace(stage, sample=False)
        keys = jax.random.split(jax.random.key(0), len(x))
        return np.asarray(jax.jit(stage.encode)(self.frozen, {"image": x}, keys))

    def evaluate(self, **what: Any) -> dict[str, float]:
        """Figures by name, such as "loss" and "frechet"; see `evaluation.evaluate_run`."""
        from archirf_jax.launch import evaluation

        return evaluation.evaluate_run(self, **what)["figures"]

    def plot_loss(self) -> Any:
        """A matplotlib figure of the loss of every report."""
        from archirf_jax.training.writers import read_losses
        from archirf_jax.visuals import plots

        return plots.loss_figure(*read_losses(self.directory))

    def denoiser(self, **how: Any) -> Any:
        """The network as a denoiser under guidance and threshold, for solvers of one's own; see `SamplerConfig`."""
        task: Any = self.task
        return task.denoiser(task.sampling.replace(**how), self.params, self.frozen)

    def digest(self) -> str:
        """A digest of the configuration and every byte of the parameters."""
        hashed = hashlib.sha256(json.dumps(_architecture(self.config.to_dict()), sort_keys=True).encode())
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.params):
            hashed.update(jax.tree_util.keystr(path).encode())
            hashed.update(np.ascontiguousarray(leaf).tobytes())
        return hashed.hexdigest()


def open_run(
    directory: pathlib.Path,
    step: int | None = None,
    average: str = EMA,
    field: str = "workdir",
    model: Any = None,
    data: Any = None,
) -> Run:
    """The run in a directory; its parameters are read when they are asked for.

    Args:
        directory: of the run.
        step: of its checkpoint; None = the newest.
        average: "ema", or the name of another one, such as "decay_0.999".
        field: how messages call the directory.
        model: the network of a run that was trained with a class of a notebook or script.
        data: the set that it was trained on, where it is at hand.

    Raises:
        UserError: there is no run, or it does not build.
    """
    config = configuration.load(directory, field)
    _take_tokenizer(config, directory)
    runs = {
        name: open_run(directory / run_directory.FROZEN / name, field=f"frozen.{name}")
        for name in config.get("frozen", {})
    }
    with registry.refuse_below(directory, config.data.get("dir", "data")):
        return Run(directory, config, make_task(config, runs, model), runs, step, average, field, data)


def _take_tokenizer(config: ml_collections.ConfigDict, directory: pathlib.Path) -> None:
    """Let captions become tokens by the copy in the run, wherever the original is now."""
    copy = directory / tokenizer.FILE
    for options in config.data.get("fields", {}).values() if copy.is_file() else ():
        if options.get("name") == KIND:
            with config.unlocked():
                options.tokenizer = str(copy)


def named(config: Any, directory: pathlib.Path) -> dict[str, Run]:
    """The frozen runs that a configuration names: the copies in a run's directory, or the originals before that.

    Raises:
        UserError: there is no such run.
    """
    runs = {}
    for name, place in config.get("frozen", {}).items():
        copy = directory / run_directory.FROZEN / name
        runs[name] = open_run(copy if copy.is_dir() else expand(place, f"frozen.{name}"), field=f"frozen.{name}")
    return runs


def keep(runs: Mapping[str, Run], directory: pathlib.Path) -> None:
    """Copy frozen runs into a run's directory, so that it opens without the originals; those kept stay as they are."""
    for name, run in runs.items():
        place = directory / run_directory.FROZEN / name
        if place.is_dir():
            continue
        part = place.with_name(f"{name}.part")
        keep(run.runs, part)
        attached = run_directory.attached(run.directory)
        run_directory.write(part, run.config.to_dict(), run.params, run.step, attached)
        part.replace(place)


def _architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a run's configuration that decides what it computes."""
    groups = ("task", "model", "process", "objective", "conditioners", "first_stage", "tokenizer")
    return {name: group for name, group in config.items() if name in groups}


def _decides(name: str) -> bool:
    """Whether a field changes what the trained network computes, and not only how, or how it was trained."""
    return not name.startswith("objective.") and name not in HOW
