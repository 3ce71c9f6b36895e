"""An autoencoder with a discriminator: two networks, two optimizers, one step that is done whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.contracts import Batch, Frozen, Losses, Metrics, TrainState
from archirf_jax.data.fields import make_fields
from archirf_jax.data.images import to_uint8
from archirf_jax.objectives import metrics
from archirf_jax.objectives.regression import mean_square
from archirf_jax.training.update import Update, commit

GENERATOR, DISCRIMINATOR = "generator", "discriminator"


class Encoder(nn.Module):
    """Images (B, H, W, C) -> (B, width)."""

    width: int

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(self.width)(nn.silu(nn.Dense(32)(x.reshape(len(x), -1))))


class Decoder(nn.Module):
    """(B, width) -> images (B, *shape)."""

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        return nn.Dense(int(np.prod(self.shape)))(nn.silu(nn.Dense(32)(z))).reshape(len(z), *self.shape)


class Autoencoder:
    """The generator is trained on the square error and to fool the discriminator, which is trained by hinges."""

    def __init__(self, config: Any, runs: Mapping[str, Any]) -> None:
        self.frozen = dict(runs)
        self.fields = make_fields(config.data)
        self.shape = (config.data.image_size, config.data.image_size, config.data.channels)
        self.encoder, self.decoder, self.critic = Encoder(config.model.width), Decoder(self.shape), Encoder(1)
        self.updates = {name: Update(config, name) for name in (GENERATOR, DISCRIMINATOR)}
        self.weight, self._config = config.model.adversarial_weight, config

    def init_params(self, key: jax.Array, frozen: Frozen) -> dict[str, Any]:
        image, z = jnp.zeros((1, *self.shape)), jnp.zeros((1, self._config.model.width))
        keys = jax.random.split(key)
        return {
            "encoder": self.encoder.init(keys[0], image)["params"],
            "decoder": self.decoder.init(keys[1], z)["params"],
        }

    def init(self, key: jax.Array, frozen: Frozen) -> TrainState:
        critic = self.critic.init(jax.random.fold_in(key, 1), jnp.zeros((1, *self.shape)))["params"]
        params = {GENERATOR: self.init_params(key, frozen), DISCRIMINATOR: {"critic": critic}}
        networks = {name: update.init(params[name]) for name, update in self.updates.items()}
        return TrainState(step=jnp.zeros((), jnp.int32), networks=networks)

    def losses(
        self, state: TrainState, frozen: Frozen, batch: Batch, key: jax.Array, network: str, train: bool = True
    ) -> tuple[Batch, Losses]:
        other = {name: each.params for name, each in state.networks.items()}

        def of_generator(params: Any, drawn: Batch, part: Any) -> Any:
            made = self._reconstructed(params, drawn["image"])
            square, fooled = mean_square(made - drawn["image"]), -self._score(other[DISCRIMINATOR], made)
            return square + self.weight * fooled, {"square_error": metrics.mean(square)}, {}

        def of_discriminator(params: Any, drawn: Batch, part: Any) -> Any:
            made = jax.lax.stop_gradient(self._reconstructed(other[GENERATOR], drawn["image"]))
            real, false = self._score(params, drawn["image"]), self._score(params, made)
            return nn.relu(1 - real) + nn.relu(1 + false), {"right": metrics.mean(real > false)}, {}

        return {"image": batch["image"]}, of_generator if network == GENERATOR else of_discriminator

    def step(self, state: TrainState, frozen: Frozen, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        gradients = {
            name: update.gradient(state.networks[name], *self.losses(state, frozen, batch, key, name))
            for name, update in self.updates.items()
        }
        return commit(state, self.updates, gradients)

    def preview(self, state: TrainState, frozen: Frozen, key: jax.Array, stride: int = 0) -> np.ndarray | None:
        z = jax.random.normal(key, (4, self._config.model.width))
        params = state.networks[GENERATOR].averages["ema"]
        images = to_uint8(np.asarray(self.decoder.apply({"params": params["decoder"]}, z)))[None]
        return images[None] if stride else images

    def reconstruct(self, params: Any, frozen: Frozen, images: jax.Array) -> jax.Array:
        return self._reconstructed(params, images)

    def _reconstructed(self, params: Any, images: jax.Array) -> jax.Array:
        z = self.encoder.apply({"params": params["encoder"]}, images)
        made: jax.Array = self.decoder.apply({"params": params["decoder"]}, z)
        return made

    def _score(self, params: Any, images: jax.Array) -> jax.Array:
        score: Any = self.critic.apply({"params": params["critic"]}, images)
        return score[:, 0]


def build(config: Any, runs: Mapping[str, Any]) -> Autoencoder:
    return Autoencoder(config, runs)
