"""Training an autoencoder: images that come back alike, with a discriminator where the objective has one.

The autoencoder and its discriminator are two networks with optimizers of their own. A step takes the gradients of both
at the same parameters, and is done for both or for none.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax import models, objectives, registry, sharding
from archirf_jax.contracts import Batch, Frozen, Losses, Metrics, TrainState
from archirf_jax.data.fields import make_fields
from archirf_jax.data.images import to_uint8
from archirf_jax.errors import UserError
from archirf_jax.models import binding
from archirf_jax.tasks import building
from archirf_jax.tasks.reconstructing import (
    DISCRIMINATOR,
    FEATURES,
    LOG_VARIANCE,
    LPIPS,
    MODEL,
    Draw,
    Params,
    Reconstructing,
)
from archirf_jax.training.update import Update, commit
from archirf_jax.visuals import latents


class Autoencoder(Reconstructing):
    """The task of a resolved configuration (data.num_classes known).

    Raises:
        UserError: a name or field that does not fit.

    Attributes:
        frozen: runs by name; LPIPS is called "lpips", the network that a projected discriminator sees by "features".
        model: has `encode`, `latent` and `decode`; see `models.latents`.
        objective: see `objectives.reconstruction`.
        discriminator: images, or maps of features where it has `of_features`, -> logits; None without one.
        fields: of the data, by name.
        examples: a batch of data for previews; None without.
    """

    main = MODEL  # the module that is exported
    use = "--workdir={workdir} --image=0"  # the arguments of `sample` for a run

    def __init__(self, config: Any, runs: building.Runs, model: Any = None) -> None:
        self.frozen = dict(runs)
        self.config = config
        self.model: Any = building.make_model(config, model, out_channels=config.data.channels)
        self.module = self.model
        if not all(hasattr(self.model, method) for method in ("encode", "latent", "decode")):
            raise UserError("model.name", config.model.name, "is not an autoencoder; take autoencoder_kl, for example")
        self.objective: Any = registry.build(
            *(objectives, "objective.name", config.objective.name, building.plain(config.objective)),
            kind=("distance", "of_latents"),
        )
        self.discriminator = self._discriminator()
        self.fields = make_fields(config.data)
        self.examples: Batch | None = None
        self._shape = (config.data.image_size, config.data.image_size, config.data.channels)
        self._check()
        self.latent_shape = self._latent_shape()

    def step(self, state: TrainState, frozen: Frozen, batch: Batch, key: jax.Array) -> tuple[TrainState, Metrics]:
        """One update of the autoencoder, and of the discriminator from its start on, and their metrics."""
        gradients = {}
        for name, update in self.updates.items():
            turn: bool | jax.Array = name == MODEL or self.started(state)
            drawn, losses = self.losses(state, frozen, batch, key, name)
            gradients[name] = update.gradient(state.networks[name], drawn, losses, turn)
        return commit(state, self.updates, gradients)

    def losses(
        self, state: TrainState, frozen: Frozen, batch: Batch, key: jax.Array, network: str, train: bool = True
    ) -> tuple[Draw, Losses]:
        """(images and noise, the losses of them) of a network.

        Without `train` latents are the modes of their distributions and are not perturbed, and terms that depend on
        the whole batch are left out.
        """
        drawn = self.draw(batch["image"], key)
        if network == MODEL:
            return drawn, functools.partial(self.of_autoencoder, state, frozen, train)
        return drawn, functools.partial(self.of_discriminator, state, frozen, train)

    @functools.cached_property
    def updates(self) -> dict[str, Update]:
        """How the networks are trained; only a run that trains needs to know."""
        names = (MODEL, DISCRIMINATOR) if self.discriminator is not None else (MODEL,)
        revise = {MODEL: self.restarted} if self.objective.restart_below else {}
        return {name: Update(self.config, name, revise=revise.get(name)) for name in names}

    def init_params(self, key: jax.Array, frozen: Frozen) -> Params:
        """Fresh parameters of the main network, by module."""
        del frozen
        params = {MODEL: self.model.init(key, jnp.zeros((1, *self._shape)))["params"]}
        if self.objective.learned_variance:
            params[LOG_VARIANCE] = {"value": jnp.zeros(())}
        return params

    def init(self, key: jax.Array, frozen: Frozen) -> TrainState:
        """The state before the first step."""
        params = {MODEL: self.init_params(key, frozen)}
        if self.discriminator is not None:
            seen = self.seen(frozen, jnp.zeros((1, *self._shape)))
            fresh = self.discriminator.init(jax.random.fold_in(key, 1), seen)["params"]
            params[DISCRIMINATOR] = {DISCRIMINATOR: fresh}
        kept = {MODEL: {"usage": jnp.ones(self.model.num_vq_embeddings)}} if self.objective.restart_below else {}
        networks = {name: update.init(params[name], kept.get(name, ())) for name, update in self.updates.items()}
        return TrainState(step=jnp.zeros((), jnp.int32), networks=networks)

    def encode(self, params: Params, images: jax.Array, noise: jax.Array | None = None) -> jax.Array:
        """Latents (B, h, w, D) of images (B, H, W, C) in [-1, 1]; noise like them samples their distributions."""
        return self.latent(params, self.encoded(params, images), noise)

    def encoded(self, params: Params, images: jax.Array) -> jax.Array:
        """What latents are made of (B, h, w, D'): of normal distributions means and logarithms of variances."""
        found: jax.Array = binding.call(self.model, params[MODEL], images, method="encode")[0]
        return found

    def latent(self, params: Params, encoded: jax.Array, noise: jax.Array | None = None) -> jax.Array:
        """Latents (B, h, w, D) of what is encoded; noise like them samples their distributions."""
        z: jax.Array = binding.call(self.model, params[MODEL], encoded, noise, method="latent")[0]
        return z

    def decode(self, params: Params, z: jax.Array) -> jax.Array:
        """Images (B, H, W, C) around [-1, 1] of latents (B, h, w, D)."""
        made: jax.Array = binding.call(self.model, params[MODEL], z, method="decode")[0]
        return made

    def reconstruct(self, params: Params, frozen: Frozen, images: jax.Array) -> jax.Array:
        """Images (B, H, W, C) as they come back, by the modes of their latents."""
        del frozen
        return self.decode(params, self.encode(params, images))

    def preview(self, state: TrainState, frozen: Frozen, key: jax.Array, stride: int = 0) -> np.ndarray | None:
        """(rows, columns, H, W, C) uint8: images, below them as they come back, below those their latents.

        Latents are shown by their first three principal components, over all images shown.
        """
        if stride or self.examples is None:
            return None
        images = self.examples["image"]
        made, z = self._shown(state.networks[MODEL].averages["ema"], images)
        seen = [to_uint8(sharding.fetch(each)) for each in (images, made)]
        seen.append(latents.as_images(sharding.fetch(z), self._shape))
        columns = min(len(images), self.config.sample.classes)
        rows = [each[: len(images) // columns * columns].reshape(-1, columns, *self._shape) for each in seen]
        return np.stack(rows, axis=1).reshape(-1, columns, *self._shape)

    def plots(self, state: TrainState, frozen: Frozen, rows: Sequence[Mapping[str, float]]) -> dict[str, Any]:
        """Figures: latents of the preview's images, channel by channel, and what metrics say of them over the steps."""
        del frozen
        figures = {"latents_over_time": latents.over_time(rows)} if latents.shown(rows) else {}
        if self.examples is not None:
            z = self._shown(state.networks[MODEL].averages["ema"], self.examples["image"])[1]
            figures["latents"] = latents.histograms(sharding.fetch(z))
        return figures

    def _latent_shape(self) -> tuple[int, ...]:
        def latents(model: Any, images: jax.Array) -> jax.Array:
            return model.latent(model.encode(images))

        def fresh(key: jax.Array) -> jax.Array:
            z: jax.Array = self.model.init_with_output(key, jnp.zeros((1, *self._shape)), method=latents)[0]
            return z

        return tuple(jax.eval_shape(fresh, jax.random.key(0)).shape[1:])

    @functools.cached_property
    def _shown(self) -> Any:
        def shown(params: Params, images: jax.Array) -> tuple[jax.Array, jax.Array]:
            z = self.encode(params, images)
            return self.decode(params, z), z

        return jax.jit(shown)

    def _discriminator(self) -> Any:
        if self.objective.discriminator is None:
            return None
        fields = dict(self.objective.discriminator)
        return registry.build(models, "objective.discriminator.name", fields.pop("name", ""), fields)

    def _check(self) -> None:
        channels = getattr(self.model, "out_channels", self._shape[-1])
        if channels != self._shape[-1]:
            what = f"is not the data's {self._shape[-1]} channels"
            raise UserError("model.out_channels", channels, what)
        if self.objective.lpips_weight > 0 and LPIPS not in self.frozen:
            what = "needs LPIPS's weights: --config.frozen.lpips=RUN; or take ms_ssim_weight, which needs none"
            raise UserError("objective.lpips_weight", self.objective.lpips_weight, what)
        if self.objective.restart_below and not hasattr(self.model, "num_vq_embeddings"):
            what = "needs a network with a codebook, such as vq_model; or 0"
            raise UserError("objective.restart_below", self.objective.restart_below, what)
        if getattr(self.discriminator, "of_features", False):
            self._check_features()
        couples = self.objective.couples_examples or getattr(self.discriminator, "couples_examples", False)
        if couples and self.config.get("accumulation", 1) > 1:
            what = "must be 1: the losses of this objective depend on the whole batch"
            raise UserError("accumulation", self.config.accumulation, what)

    def _check_features(self) -> None:
        if FEATURES not in self.frozen:
            what = "sees by a frozen network: --config.frozen.features=RUN, of LPIPS or of an autoencoder"
            raise UserError("objective.discriminator.name", self.config.objective.discriminator["name"], what)
        module: Any = getattr(self.frozen[FEATURES].task, "model", None)
        if not hasattr(module, "features"):
            what = "has no network with `features`; take the run of LPIPS, or of an autoencoder with levels"
            raise UserError("frozen.features", self.config.frozen.get(FEATURES), what)
        if getattr(module, "out_channels", self._shape[-1]) != self._shape[-1]:
            what = f"is of images of {module.out_channels} channels, and the data has {self._shape[-1]}"
            raise UserError("frozen.features", self.config.frozen.get(FEATURES), what)


def build(config: Any, runs: Mapping[str, Any], model: Any = None) -> Autoencoder:
    """The task of a resolved configuration."""
    return Autoencoder(config, runs, model)
