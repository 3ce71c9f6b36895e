"""A small image with noise of a level that the network knows (Ho et al. 2021, "Cascaded Diffusion Models", Sec. 4)."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from archirf_jax.contracts import Batch, Condition, Frozen
from archirf_jax.processes.ddpm import DDPM


@dataclasses.dataclass(frozen=True)
class LowRes:
    """Attributes:
    process: of the noise.
    noise_level: the step of the process whose noise is added, where the batch does not say it.
    """

    process: DDPM
    noise_level: int

    def __call__(self, frozen: Frozen, batch: Batch, keys: jax.Array) -> Condition:
        """{"low_res": (B, h, w, C), "noise_level": (B,)} of "low_res" in [-1, 1], and of "noise_level", a step."""
        del frozen
        low_res = batch["low_res"]
        usual = jnp.full(len(keys), self.noise_level, jnp.float32)
        level = batch["noise_level"].astype(jnp.float32) if "noise_level" in batch else usual
        noise = jax.vmap(lambda key: jax.random.normal(key, low_res.shape[1:]))(keys)
        return {
            "low_res": self.process.noised(low_res, noise, (level + 1) / self.process.steps),
            "noise_level": level,
        }

    def null(self, frozen: Frozen) -> Condition:
        """{}: the image is never dropped."""
        del frozen
        return {}


def build(
    noise_level: int = 20,
    schedule: str = "linear",
    steps: int = 1000,
    beta_start: float | None = None,
    beta_end: float | None = None,
) -> LowRes:
    """The conditioner; fields as of `LowRes` and, of its process, of `processes.ddpm.DDPM`."""
    return LowRes(DDPM(schedule, steps, beta_start, beta_end), noise_level)
