"""What an autoencoder and its discriminator are trained on: the half of `Autoencoder` that computes losses."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from archirf_jax.contracts import Extras, Frozen, Metrics, TrainState
from archirf_jax.models import binding
from archirf_jax.objectives import adversarial, metrics
from archirf_jax.tasks import building

MODEL, DISCRIMINATOR, LOG_VARIANCE, LPIPS = "model", "discriminator", "log_variance", "lpips"
LAST = ("decoder", "conv_out", "kernel")  # the layer at which the adaptive weight compares slopes
Params = dict[str, Any]


class Draw(NamedTuple):
    """Images (B, H, W, C), and noise like their latents: of the distributions, and of the perturbation."""

    images: jax.Array
    noise: jax.Array
    perturbation: jax.Array


class Passed(NamedTuple):
    """Images that went through the autoencoder (B, H, W, C), their latents (B, h, w, D) and what the network sowed."""

    made: jax.Array
    z: jax.Array
    extras: Extras


class Reconstructing:
    """Attributes as of `Autoencoder`."""

    frozen: dict[str, Any]
    model: Any
    objective: Any
    discriminator: Any
    latent_shape: tuple[int, ...]

    def draw(self, images: jax.Array, key: jax.Array) -> Draw:
        """The images of a batch with the noise of a step."""
        shape = self.latent_shape

        def normal(purpose: str) -> jax.Array:
            keys = building.example_keys(key, purpose, len(images))
            return jax.vmap(lambda each: jax.random.normal(each, shape))(keys)

        return Draw(images, normal("posterior"), normal("perturbation"))

    def passed(self, params: Any, images: jax.Array, noise: jax.Array | None, added: jax.Array | None) -> Passed:
        """Images through the autoencoder; noise samples the latents' distributions, and `added` is added to latents."""
        encoded, first = binding.call(self.model, params, images, method="encode")
        z, second = binding.call(self.model, params, encoded, noise, method="latent")
        made, third = binding.call(self.model, params, z if added is None else z + added, method="decode")
        return Passed(made, z, first | second | third)

    def _of_drawn(self, params: Params, drawn: Draw, train: bool) -> Passed:
        added = self.objective.perturbation * drawn.perturbation if train and self.objective.perturbation else None
        return self.passed(params[MODEL], drawn.images, drawn.noise if train else None, added)

    def of_autoencoder(
        self, state: TrainState, frozen: Frozen, train: bool, params: Params, drawn: Draw, part: Any
    ) -> Any:
        """The losses of the autoencoder; see `contracts.Losses`."""
        del part
        objective, passed = self.objective, self._of_drawn(params, drawn, train)
        lpips = functools.partial(self.perceptual, frozen) if LPIPS in self.frozen else None
        distance, reported = objective.distance(passed.made, drawn.images, lpips)
        numbers = drawn.images[0].size
        of_latents, more = objective.of_latents(passed.z, passed.extras, numbers, coupled=train)
        losses, reported = distance + of_latents, reported | more
        if objective.learned_variance:
            s = params[LOG_VARIANCE]["value"]
            losses, reported = distance / jnp.exp(s) + s + of_latents, reported | {"log_variance": metrics.pair(s)}
        if self.discriminator is not None and DISCRIMINATOR in state.networks:
            judged, more = self._adversarial(state, params, drawn, train, passed.made, lpips)
            losses, reported = losses + judged, reported | more
        return losses, reported, {}

    def _adversarial(
        self, state: TrainState, params: Params, drawn: Draw, train: bool, made: jax.Array, lpips: Any
    ) -> tuple[jax.Array, Metrics]:
        """What the discriminator thinks of reconstructions (B,), weighed, and the weight."""
        constant = jax.lax.stop_gradient(state.networks[DISCRIMINATOR].params)
        fooled = adversarial.generator(self._logits(constant, made))
        weight = jnp.float32(self.objective.adversarial_weight)
        if self.objective.adaptive:
            weight = self._adaptive(constant, params, drawn, train, made, lpips)
        started = self.started(state).astype(jnp.float32)
        reported = {"adversarial": metrics.pair(jnp.mean(fooled) * started, started)}
        return started * weight * fooled, reported | {"adversarial_weight": metrics.pair(weight * started, started)}

    def _adaptive(
        self, discriminator: Params, params: Params, drawn: Draw, train: bool, made: jax.Array, lpips: Any
    ) -> jax.Array:
        made, params = jax.lax.stop_gradient((made, params))
        of_distance = jax.grad(lambda x: jnp.mean(self.objective.distance(x, drawn.images, lpips)[0]))(made)
        of_opinion = jax.grad(lambda x: jnp.mean(adversarial.generator(self._logits(discriminator, x))))(made)

        def images(kernel: jax.Array) -> jax.Array:
            return self._of_drawn(params | {MODEL: _replaced(params[MODEL], LAST, kernel)}, drawn, train).made

        # The pass is the one that has been done, which the compiler sees; only the last layer's slopes are new.
        _, slopes = jax.vjp(images, _at(params[MODEL], LAST))
        if self.objective.learned_variance:
            of_distance = of_distance / jnp.exp(params[LOG_VARIANCE]["value"])
        weight = self.objective.adversarial_weight
        return adversarial.adaptive_weight(slopes(of_distance)[0], slopes(of_opinion)[0], weight)

    def of_discriminator(self, state: TrainState, train: bool, params: Params, drawn: Draw, part: Any) -> Any:
        """The losses of the discriminator; see `contracts.Losses`."""
        del part
        made = jax.lax.stop_gradient(self._of_drawn(state.networks[MODEL].params, drawn, train).made)
        real, fake = self._logits(params, drawn.images), self._logits(params, made)
        losses = adversarial.DISCRIMINATOR_LOSSES[self.objective.adversarial_loss](real, fake)
        reported = {"real": metrics.mean(real), "fake": metrics.mean(fake)}
        if self.objective.r1_weight > 0:
            slope = adversarial.r1(functools.partial(self._logits, params, higher_derivatives=True), drawn.images)
            losses, reported["r1"] = losses + 0.5 * self.objective.r1_weight * slope, metrics.mean(slope)
        return losses, reported, {}

    def _logits(self, params: Params, images: jax.Array, higher_derivatives: bool = False) -> jax.Array:
        module, own = self.discriminator, params[DISCRIMINATOR]
        logits: jax.Array = binding.call(module, own, images, higher_derivatives=higher_derivatives)[0]
        return logits

    def perceptual(self, frozen: Frozen, made: jax.Array, images: jax.Array) -> jax.Array:
        """LPIPS (B,) between images (B, H, W, C) in [-1, 1]."""
        distances: jax.Array = binding.call(self.frozen[LPIPS].task.model, frozen[LPIPS][MODEL], made, images)[0]
        return distances

    def started(self, state: TrainState) -> jax.Array:
        """() whether the discriminator counts and is trained."""
        return state.step >= self.objective.adversarial_start


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _replaced(tree: Any, path: tuple[str, ...], value: Any) -> Any:
    first, *rest = path
    return {**tree, first: _replaced(tree[first], tuple(rest), value) if rest else value}
