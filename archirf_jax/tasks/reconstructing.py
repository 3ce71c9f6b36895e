"""What an autoencoder and its discriminator are trained on: the half of `Autoencoder` that computes losses."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from archirf_jax.contracts import Extras, Frozen, Metrics, Network, TrainState
from archirf_jax.models import binding
from archirf_jax.objectives import adversarial, augmentation, dead_codes, metrics
from archirf_jax.tasks import building
from archirf_jax.training import rows

MODEL, DISCRIMINATOR, LOG_VARIANCE = "model", "discriminator", "log_variance"
LPIPS, FEATURES = "lpips", "features"  # frozen runs
CODEBOOK = (MODEL, "codebook", "embedding")  # the parameter of which rows are dead codes
REAL, MADE = 0, 1  # rows of what is drawn for augmentation
LAST = ("decoder", "conv_out", "kernel")  # the layer at which the adaptive weight compares slopes
Params = dict[str, Any]


class Draw(NamedTuple):
    """What a step is computed from.

    Attributes:
        images: (B, H, W, C).
        noise, perturbation: (B, h, w, D) normal, of the latents' distributions and of what is added to latents.
        lottery: (B, h, w) uniform, by which latents take the place of dead codes; None where none do.
        augment: (B, 2, augmentation.NUMBERS) uniform, of real and of made images; None where none are augmented.
    """

    images: jax.Array
    noise: jax.Array
    perturbation: jax.Array
    lottery: jax.Array | None = None
    augment: jax.Array | None = None


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

        def drawn(purpose: str, shape: tuple[int, ...], how: Any = jax.random.normal) -> jax.Array:
            keys = building.example_keys(key, purpose, len(images))
            found: jax.Array = jax.vmap(lambda each: how(each, shape))(keys)
            return found

        noise, perturbation = drawn("posterior", shape), drawn("perturbation", shape)
        lottery = drawn("restart", shape[:-1], jax.random.uniform) if self.objective.restart_below else None
        numbers = (2, augmentation.NUMBERS)
        augment = drawn("augment", numbers, jax.random.uniform) if self.objective.augment else None
        return Draw(images, noise, perturbation, lottery, augment)

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
            judged, more = self._adversarial(state, frozen, params, drawn, train, passed.made, lpips)
            losses, reported = losses + judged, reported | more
        if not train or drawn.lottery is None:
            return losses, reported, {}
        return losses, reported, {"codes": passed.extras["codes"], "latents": passed.z, "lottery": drawn.lottery}

    def restarted(self, network: Network, noted: dict[str, jax.Array]) -> tuple[Network, Metrics]:
        """A network of which the dead codes are latents of the batch, and how many there were."""
        objective, usage = self.objective, network.objective_state["usage"]
        usage = dead_codes.usage_after(usage, noted["codes"], objective.restart_decay)
        dead = usage < objective.restart_below
        fresh = dead_codes.replacements(dead, noted["latents"], noted["lottery"])
        network = rows.replaced(network, CODEBOOK, dead, fresh)
        kept = {"usage": jnp.where(dead, 1.0, usage)}  # as many uses as the mean, before it may be dead again
        found = {"codebook_restarts": metrics.mean(jnp.sum(dead)[None])}
        return dataclasses.replace(network, objective_state=kept), found

    def _adversarial(
        self, state: TrainState, frozen: Frozen, params: Params, drawn: Draw, train: bool, made: jax.Array, lpips: Any
    ) -> tuple[jax.Array, Metrics]:
        """What the discriminator thinks of reconstructions (B,), weighed, and the weight."""
        constant = jax.lax.stop_gradient(state.networks[DISCRIMINATOR].params)
        logits = functools.partial(self._logits, frozen, constant, chance=_chance(drawn, MADE, train))
        fooled = adversarial.generator(logits(made))
        weight = jnp.float32(self.objective.adversarial_weight)
        if self.objective.adaptive:
            weight = self._adaptive(logits, params, drawn, train, made, lpips)
        started = self.started(state).astype(jnp.float32)
        reported = {"adversarial": metrics.pair(jnp.mean(fooled) * started, started)}
        return started * weight * fooled, reported | {"adversarial_weight": metrics.pair(weight * started, started)}

    def _adaptive(
        self, logits: Any, params: Params, drawn: Draw, train: bool, made: jax.Array, lpips: Any
    ) -> jax.Array:
        made, params = jax.lax.stop_gradient((made, params))
        of_distance = jax.grad(lambda x: jnp.mean(self.objective.distance(x, drawn.images, lpips)[0]))(made)
        of_opinion = jax.grad(lambda x: jnp.mean(adversarial.generator(logits(x))))(made)

        def images(kernel: jax.Array) -> jax.Array:
            return self._of_drawn(params | {MODEL: _replaced(params[MODEL], LAST, kernel)}, drawn, train).made

        # The pass is the one that has been done, which the compiler sees; only the last layer's slopes are new.
        _, slopes = jax.vjp(images, _at(params[MODEL], LAST))
        if self.objective.learned_variance:
            of_distance = of_distance / jnp.exp(params[LOG_VARIANCE]["value"])
        weight = self.objective.adversarial_weight
        return adversarial.adaptive_weight(slopes(of_distance)[0], slopes(of_opinion)[0], weight)

    def of_discriminator(
        self, state: TrainState, frozen: Frozen, train: bool, params: Params, drawn: Draw, part: Any
    ) -> Any:
        """The losses of the discriminator; see `contracts.Losses`."""
        del part
        made = jax.lax.stop_gradient(self._of_drawn(state.networks[MODEL].params, drawn, train).made)
        logits = functools.partial(self._logits, frozen, params)
        of_real = functools.partial(logits, chance=_chance(drawn, REAL, train))
        real, fake = of_real(drawn.images), logits(made, _chance(drawn, MADE, train))
        losses = adversarial.DISCRIMINATOR_LOSSES[self.objective.adversarial_loss](real, fake)
        reported = {"real": metrics.mean(real), "fake": metrics.mean(fake)}
        if self.objective.r1_weight > 0:
            slope = adversarial.r1(functools.partial(of_real, higher_derivatives=True), drawn.images)
            losses, reported["r1"] = losses + 0.5 * self.objective.r1_weight * slope, metrics.mean(slope)
        return losses, reported, {}

    def _logits(
        self,
        frozen: Frozen,
        params: Params,
        images: jax.Array,
        chance: jax.Array | None = None,
        higher_derivatives: bool = False,
    ) -> jax.Array:
        if chance is not None:
            images = augmentation.augmented(images, chance, self.objective.augment)
        module, seen = self.discriminator, self.seen(frozen, images, higher_derivatives)
        logits: jax.Array = binding.call(module, params[DISCRIMINATOR], seen, higher_derivatives=higher_derivatives)[0]
        return logits

    def seen(self, frozen: Frozen, images: jax.Array, higher_derivatives: bool = False) -> Any:
        """What the discriminator judges: images (B, H, W, C), or the maps of the frozen run "features" of them."""
        if not getattr(self.discriminator, "of_features", False):
            return images
        module, params = self.frozen[FEATURES].task.model, frozen[FEATURES][MODEL]
        return binding.call(module, params, images, method="features", higher_derivatives=higher_derivatives)[0]

    def perceptual(self, frozen: Frozen, made: jax.Array, images: jax.Array) -> jax.Array:
        """LPIPS (B,) between images (B, H, W, C) in [-1, 1]."""
        distances: jax.Array = binding.call(self.frozen[LPIPS].task.model, frozen[LPIPS][MODEL], made, images)[0]
        return distances

    def started(self, state: TrainState) -> jax.Array:
        """() whether the discriminator counts and is trained."""
        return state.step >= self.objective.adversarial_start


def _chance(drawn: Draw, which: int, train: bool) -> jax.Array | None:
    return drawn.augment[:, which] if train and drawn.augment is not None else None


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for name in path:
        tree = tree[name]
    return tree


def _replaced(tree: Any, path: tuple[str, ...], value: Any) -> Any:
    first, *rest = path
    return {**tree, first: _replaced(tree[first], tuple(rest), value) if rest else value}
