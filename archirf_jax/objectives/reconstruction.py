"""What an autoencoder is trained on: images that come back alike and look real, and latents fit for diffusion.

    L = distance / exp(s) + s  +  kl KL / numbers  +  codebook loss  +  std |std - target|^2 + mean |mean|^2
        + w adversarial          w = weight |d distance| / |d adversarial| at the decoder's last layer

Rombach et al. 2022 (LDM), appendix G; Esser et al. 2021, Eqs. 5 to 7. s, the logarithm of a variance, is 0 unless it is
learned. Distances are means over an image's numbers, and the divergence is divided by their count, so that the weights
mean what they do in the papers, where both are sums.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from archirf_jax.contracts import Extras, Metrics
from archirf_jax.errors import UserError
from archirf_jax.objectives import adversarial, augmentation, metrics, structural
from archirf_jax.objectives.regression import mean_square

WHERE = ("before", "after")
CLIPPED = 0.718  # standard deviation of a unit Gaussian that is clipped to [-1, 1]
WEIGHTS = (
    *("l1_weight", "l2_weight", "ms_ssim_weight", "lpips_weight", "kl_weight", "codebook_weight", "std_weight"),
    *("mean_weight", "perturbation", "adversarial_weight", "r1_weight", "restart_below"),
)
Perceptual = Callable[[jax.Array, jax.Array], jax.Array]  # two batches of images -> distances (B,)


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """The loss of the module docstring. Weights are 0 or more, and 0 leaves a term out.

    Attributes:
        l1_weight, l2_weight: of the mean absolute and the mean square error.
        ms_ssim_weight: of 1 - the structural similarity at several scales.
        lpips_weight: of LPIPS, whose weights are the run `config.frozen.lpips`.
        learned_variance: learn s.
        kl_weight: of the divergence of the latents' distributions from N(0, I).
        codebook_weight: of the codebook's loss.
        std_weight, mean_weight: of how far each channel's standard deviation over the batch is from `std_target`, and
            its mean from 0.
        std_target: 1 cannot be reached by latents that are clipped.
        std_measured: "before" or "after" latents are bounded.
        perturbation: standard deviation of the noise that is added to latents before they are decoded.
        adversarial_weight, adversarial_start: of the discriminator's opinion, and the step from which it counts and
            the discriminator is trained.
        adversarial_loss: of the discriminator: "hinge" or "logistic".
        adaptive: whether the weight is multiplied by the quotient of the slopes at the decoder's last layer.
        r1_weight: of half the squared slope of the discriminator at real images.
        discriminator: the fields of the network, its name among them; None = there is none.
        augment: names of `augmentation.KINDS`: how images are changed before the discriminator sees them, in training.
        restart_below: a code whose usage falls below it is replaced by a latent of the batch; 0 = never. 1 is the mean
            usage of all codes.
        restart_decay: of the exponential moving average of usage, a step.

    Raises:
        UserError: a field out of its range, or weights without the network that they are about.
    """

    l1_weight: float = 1.0
    l2_weight: float = 0.0
    ms_ssim_weight: float = 0.0
    lpips_weight: float = 0.0
    learned_variance: bool = False
    kl_weight: float = 1e-6
    codebook_weight: float = 1.0
    std_weight: float = 0.0
    mean_weight: float = 0.0
    std_target: float = CLIPPED
    std_measured: str = "before"
    perturbation: float = 0.0
    adversarial_weight: float = 0.0
    adversarial_start: int = 0
    adversarial_loss: str = "hinge"
    adaptive: bool = True
    r1_weight: float = 0.0
    discriminator: Mapping[str, Any] | None = None
    augment: tuple[str, ...] = ()
    restart_below: float = 0.0
    restart_decay: float = 0.99

    def __post_init__(self) -> None:
        for name in WEIGHTS:
            if not 0 <= getattr(self, name) < math.inf:
                raise UserError(f"objective.{name}", getattr(self, name), "must be finite and 0 or more")
        if not 0 < self.std_target < math.inf:
            raise UserError("objective.std_target", self.std_target, "must be finite and above 0")
        choices = {"std_measured": WHERE, "adversarial_loss": tuple(adversarial.DISCRIMINATOR_LOSSES)}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise UserError(f"objective.{name}", getattr(self, name), f"is not one of {', '.join(allowed)}")
        for name in self.augment:
            if name not in augmentation.KINDS:
                raise UserError("objective.augment", name, f"is not one of {', '.join(augmentation.KINDS)}")
        if self.augment and self.discriminator is None:
            raise UserError("objective.augment", self.augment, "needs objective.discriminator, which sees the images")
        for name, value in (("restart_below", self.restart_below), ("restart_decay", self.restart_decay)):
            if not 0 <= value < 1:
                raise UserError(f"objective.{name}", value, "must be 0 or more and below 1")
        if self.adversarial_start < 0:
            raise UserError("objective.adversarial_start", self.adversarial_start, "must be 0 or more")
        if (self.adversarial_weight > 0) != (self.discriminator is not None):
            what = "and objective.discriminator belong together: give both, or neither (0 and None)"
            raise UserError("objective.adversarial_weight", self.adversarial_weight, what)

    @property
    def couples_examples(self) -> bool:
        """Whether an image's loss depends on the others of its batch."""
        return self.std_weight > 0 or self.mean_weight > 0 or (self.adversarial_weight > 0 and self.adaptive)

    def distance(self, made: jax.Array, images: jax.Array, lpips: Perceptual | None) -> tuple[jax.Array, Metrics]:
        """Distances (B,) of reconstructions from images (B, H, W, C) in [-1, 1], weighed, and each kind of them."""
        error = made - images
        kinds: dict[str, tuple[float, Callable[[], jax.Array]]] = {
            "l1": (self.l1_weight, lambda: jnp.mean(jnp.abs(error), axis=(1, 2, 3))),
            "l2": (self.l2_weight, lambda: mean_square(error)),
            "ms_ssim": (self.ms_ssim_weight, lambda: 1 - structural.ms_ssim(made, images)),
            "lpips": (self.lpips_weight, lambda: lpips(made, images) if lpips else jnp.zeros(len(images))),
        }
        found = {name: (weight, of()) for name, (weight, of) in kinds.items() if weight > 0}
        total = sum((weight * each for weight, each in found.values()), jnp.zeros(len(images)))
        psnr = 10 * jnp.log10(4 / jnp.maximum(mean_square(error), 1e-10))  # of images that reach from -1 to 1
        each = {name: metrics.mean(value) for name, (_, value) in found.items()}
        return total, each | {"image_psnr": metrics.mean(psnr)}

    def of_latents(self, z: jax.Array, extras: Extras, numbers: int, coupled: bool) -> tuple[jax.Array, Metrics]:
        """What latents (B, h, w, D) cost (B,), and figures about them.

        Args:
            z: as the decoder sees them, without the noise.
            extras: what the autoencoder sowed: "kl", "codebook_loss", "unbounded", "saturated".
            numbers: of an image.
            coupled: whether the terms of the whole batch count.
        """
        total, reported = jnp.zeros(len(z)), {}
        for name, weight in (("kl", self.kl_weight / numbers), ("codebook_loss", self.codebook_weight)):
            if name in extras:
                total += weight * extras[name]
                reported[name] = metrics.mean(extras[name])
        measured = extras.get("unbounded", z) if self.std_measured == "before" else z
        mean, std = jnp.mean(measured, axis=(0, 1, 2)), jnp.std(measured, axis=(0, 1, 2))
        if coupled:
            total += self.std_weight * jnp.mean(jnp.square(std - self.std_target))
            total += self.mean_weight * jnp.mean(jnp.square(mean))
        spread = jnp.std(z, axis=(0, 1, 2))
        figures = {"mean": jnp.mean(mean), "std": jnp.mean(spread)}
        figures |= {"std_least": jnp.min(spread), "std_largest": jnp.max(spread)}
        reported |= {f"latent/{name}": metrics.mean(value[None]) for name, value in figures.items()}
        if "saturated" in extras:
            reported["latent/saturated"] = metrics.mean(extras["saturated"])
        return total, reported | metrics.diagnostics(extras)


build = Reconstruction
