"""Small trainings for the tests of this room: a configuration, a feed, and tasks with one and with two networks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from archirf_jax.contracts import Batch, Frozen, Losses, Metrics, Network, TrainState
from archirf_jax.training.update import Update, commit


def _defaults() -> dict[str, Any]:
    return {
        "steps": 10_000,
        "batch_size": 8,
        "accumulation": 1,
        "seed": 0,
        "steps_per_dispatch": 6,
        "model": {"dtype": "float32"},
        "optimizer": {
            "name": "adamw",
            "learning_rate": 1e-4,
            "b1": 0.9,
            "b2": 0.999,
            "eps": 1e-8,
            "moment_dtype": "float32",
            "muon_momentum": 0.95,
            "weight_decay": 0.0,
            "weight_decay_mask": "(.*/)?kernel",
            "clip_norm": ml_collections.config_dict.placeholder(float),
        },
        "schedule": {"name": "constant", "warmup_steps": 0, "reference_steps": 70_000},
        "ema": {"decay": 0.9999, "more_decays": (), "sigma_rel": (), "snapshot_steps": 1000},
        "guard": {"patience": 10, "jump": ml_collections.config_dict.placeholder(float)},
        "networks": {},
        "mesh": {"data": 1, "fsdp": 1},
        "log": {"every_steps": 2, "tensorboard": False},
        "checkpoint": {
            "every_steps": 1000,
            "keep": 3,
            "keep_best": 0,
            "best_metric": "loss",
            "keep_every": ml_collections.config_dict.placeholder(int),
            "required": True,
        },
        "sample": {"every_steps": 1000},
    }


def config(networks: dict[str, Any] | None = None, **changes: Any) -> Any:
    """The defaults with changes such as optimizer__b1=0.5, and overrides by network."""
    made = ml_collections.ConfigDict(_defaults())
    made.update_from_flattened_dict({name.replace("__", "."): value for name, value in changes.items()})
    made.networks = ml_collections.ConfigDict(networks or {})
    return made.lock()


def pair(values: Any, weight: float = 1.0) -> jax.Array:
    """The metric that is the mean of values (B,)."""
    return jnp.stack([jnp.mean(jnp.asarray(values, jnp.float32)) * weight, jnp.float32(weight)])


def summed(values: jax.Array) -> jax.Array:
    """The metric whose sum and weight are those of all values (B,)."""
    return jnp.stack([jnp.sum(values), jnp.float32(len(values))])


def started(update: Update, params: Any, objective_state: Any = ()) -> TrainState:
    """The state before the first step of one network, "net", with one module of that name."""
    return TrainState(jnp.int32(0), {"net": update.init({"net": params}, objective_state)})


def step(update: Update, state: TrainState, drawn: Any, losses: Losses) -> tuple[TrainState, Metrics]:
    """A step of that network."""
    return commit(state, {"net": update}, {"net": update.gradient(state.networks["net"], drawn, losses)})


def on_module(losses: Callable[[Any, Any, Any], Any]) -> Losses:
    """Losses of the parameters of the module "net"."""
    return lambda params, drawn, part: losses(params["net"], drawn, part)


def same(first: Any, second: Any) -> bool:
    """Bit for bit."""
    pairs = zip(*map(jax.tree.leaves, (first, second)), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


class Feed:
    """Batches of images (B, 4) in order; the `bad` steps hold one NaN.

    With `widths`, steps from that number on have batches of another width.
    """

    dispatch = 6

    def __init__(self, bad: tuple[int, ...] = (), batch_size: int = 8, widths: dict[int, int] | None = None) -> None:
        self.bad, self.batch_size, self.widths = bad, batch_size, {0: 4} | (widths or {})

    def chunk(self, step: int, most: int) -> tuple[Any, int]:
        """All batches of a dispatch, of one width."""
        later = [start for start in self.widths if start > step]
        n = min([most, *(start - step for start in later)])
        width = self.widths[max(start for start in self.widths if start <= step)]
        made = [np.random.default_rng(step + i).normal(size=(self.batch_size, width)) for i in range(self.dispatch)]
        for i in range(self.dispatch):
            if step + i in self.bad:
                made[i][2, 0] = np.nan
        return np.stack(made).astype(np.float32), n

    def batch(self, chunk: Any, i: jax.Array, key: jax.Array) -> Batch:
        """The i-th batch of the chunk, some examples mirrored."""
        image = jnp.asarray(chunk)[i]
        mirrored = jax.random.bernoulli(key, 0.5, (len(image), 1))
        return {"image": jnp.where(mirrored, image[:, ::-1], image)}

    def close(self) -> None:
        """Nothing to release."""


class Net(nn.Module):
    """Two layers, and `depth` stacked ones between them."""

    width: int = 16
    out: int = 4
    depth: int = 0

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        hidden = nn.relu(nn.Dense(self.width, name="block_0")(x))
        if self.depth:
            stack = self.param("blocks_0", nn.initializers.normal(0.05), (self.depth, self.width, self.width))
            hidden, _ = jax.lax.scan(lambda hidden, kernel: (hidden + nn.relu(hidden @ kernel), None), hidden, stack)
        return nn.Dense(self.out, name="final_layer")(hidden)


class Denoising:
    """A task with one network, "net": images from noisy ones, moved by the frozen run "shift" (4,) if it is given."""

    def __init__(self, made: Any, **fields: int) -> None:
        self.frozen: dict[str, Any] = {}
        self.updates, self.model = {"net": Update(made, "net")}, Net(**fields)

    def init(self, key: jax.Array, frozen: Frozen) -> TrainState:
        """Fresh parameters."""
        return started(self.updates["net"], self.model.init(key, jnp.zeros((1, 4)))["params"])

    def losses(
        self, state: TrainState, frozen: Frozen, batch: Batch, key: jax.Array, network: str, train: bool = True
    ) -> tuple[Any, Losses]:
        """Squared errors."""

        def losses(params: Any, drawn: Any, part: Any) -> Any:
            image, noise = drawn
            goal = image + frozen.get("shift", 0.0)
            each = jnp.mean(jnp.square(self.model.apply({"params": params["net"]}, image + noise) - goal), axis=1)
            return each, {"half": summed(each / 2)}, {}

        return (batch["image"], jax.random.normal(key, batch["image"].shape)), losses

    def step(self, state: TrainState, frozen: Frozen, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        """One update."""
        return step(self.updates["net"], state, *self.losses(state, frozen, batch, key, "net"))

    def preview(self, state: TrainState, frozen: Frozen, key: jax.Array, stride: int = 0) -> np.ndarray | None:
        """Grey images (1, 2, 4, 4, 1)."""
        grid = np.full((1, 2, 4, 4, 1), int(state.step) % 256, np.uint8)
        return np.stack([grid, grid]) if stride else grid


class Adversarial:
    """A task with two networks: "zenerator" (the main one, last by name) and "critic", which rests before `start`."""

    def __init__(self, made: Any, start: int = 0) -> None:
        self.frozen: dict[str, Any] = {}
        self.start, self.model, self.head = start, Net(), Net(out=1)
        self.updates = {name: Update(made, name) for name in ("zenerator", "critic")}

    def init(self, key: jax.Array, frozen: Frozen) -> TrainState:
        """Fresh parameters."""
        params = {
            "zenerator": {"decoder": self.model.init(key, jnp.zeros((1, 4)))["params"]},
            "critic": {"head": self.head.init(jax.random.fold_in(key, 1), jnp.zeros((1, 4)))["params"]},
        }
        networks = {name: update.init(params[name]) for name, update in self.updates.items()}
        return TrainState(jnp.int32(0), networks)

    def losses(
        self, state: TrainState, frozen: Frozen, batch: Batch, key: jax.Array, network: str, train: bool = True
    ) -> tuple[Any, Losses]:
        """The non-saturating losses of a GAN; "extra" in a batch adds to the critic's alone."""
        others = {name: each.params for name, each in state.networks.items()}

        def losses(params: Any, drawn: Any, part: Any) -> Any:
            image, noise, extra = drawn
            own = others | {network: params}
            made = self.model.apply({"params": own["zenerator"]["decoder"]}, noise)
            score = self.head.apply({"params": own["critic"]["head"]}, made)[:, 0]
            if network == "zenerator":
                return jax.nn.softplus(-score), {"score": summed(score)}, {}
            real = self.head.apply({"params": own["critic"]["head"]}, image)[:, 0]
            return jax.nn.softplus(score) + jax.nn.softplus(-real) + extra * jnp.square(real), {}, {}

        noise = jax.random.normal(key, batch["image"].shape)
        return (batch["image"], noise, batch.get("extra", jnp.zeros(len(noise)))), losses

    def step(self, state: TrainState, frozen: Frozen, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        """One update of both."""
        turns: dict[str, Any] = {"zenerator": True, "critic": state.step >= self.start if self.start else True}
        gradients = {
            name: update.gradient(state.networks[name], *self.losses(state, frozen, batch, key, name), turns[name])
            for name, update in self.updates.items()
        }
        return commit(state, self.updates, gradients)

    def preview(self, state: TrainState, frozen: Frozen, key: jax.Array, stride: int = 0) -> np.ndarray | None:
        """Nothing to see."""
        return None


def other(network: Network, **fields: Any) -> Network:
    """A network with other fields."""
    return dataclasses.replace(network, **fields)
