"""The networks that are timed, of published sizes, with a configuration, a batch and a state for each."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from archirf_jax.contracts import Batch, TrainState
from archirf_jax.data.fields import shapes
from archirf_jax.launch.defaults import defaults
from archirf_jax.models import dit
from archirf_jax.tasks.building import make_task, resolve
from archirf_jax.tasks.planning import forward
from configs import adm_ddpm, edm2_edm

DIT = {"depth": "num_layers", "num_heads": "num_attention_heads"}  # our names -> those of diffusers
TOKENS, WIDTH = 77, 768  # of CLIP's texts
TRAINING = 3  # times the arithmetic of a forward pass


class Sized(NamedTuple):
    """A network that is timed.

    Attributes:
        config: makes its configuration; its argument says whether sizes are small.
        batch: images a step.
        peer: kind and sizes of PyTorch's, see `benchmarks.networks_torch`, and what differs where sizes are small.
    """

    config: Callable[[bool], Any]
    batch: int
    peer: tuple[str, dict[str, Any], dict[str, Any]]


def of_latents(channels: int, model: dict[str, Any], small: dict[str, Any], texts: bool = False) -> Any:
    """Makes the configuration of a rectified flow on 32x32 latents, conditioned on labels or on texts."""

    def make(toy: bool) -> Any:
        config, side = defaults(), 8 if toy else 32
        tokens = {"tokens": (TOKENS, WIDTH), "pooled": (WIDTH,)}
        fields = {"latents": (side, side, channels)} | (tokens if texts else {})
        with config.unlocked():
            config.model = ml_collections.ConfigDict(model | (small if toy else {}))
            config.model.dtype = "bfloat16"
            config.first_stage.name = "benchmarks.gpu.latents"
            config.data.fields = ml_collections.ConfigDict(
                {name: {"name": "array", "feature": name, "shape": shape} for name, shape in fields.items()}
            )
            if texts:
                config.conditioners = ml_collections.ConfigDict({"text": {"name": "given", "shapes": tokens}})
        resolve(config, 1000)
        return config

    return make


def of_images(config_of: Callable[[str], Any], small: dict[str, Any]) -> Any:
    """Makes the configuration of a network on ImageNet at 64x64, without remat; digits where it is small."""

    def make(toy: bool) -> Any:
        config = config_of("digits" if toy else "imagenet64")
        config.model.update(dtype="bfloat16", remat=False, **(small if toy else {}))
        resolve(config, 1000)
        return config

    return make


def edm2_s(variant: str) -> Any:
    """EDM2-S as published: its U-Net on 64x64 images."""
    config = edm2_edm.get_config(variant)
    if variant == "imagenet64":
        with config.unlocked():
            config.model = ml_collections.ConfigDict(
                {"name": "edm2_unet", "time_scale": 1.0, "remat": False} | edm2_edm.PRESETS["S"] | {"dtype": "bfloat16"}
            )
    return config


def dit_on_latents(size: str, batch: int) -> Sized:
    """A DiT with patches of 2 on 32x32x4 latents."""
    fields = dit.PRESETS[f"{size}/2"]
    peer = {DIT[name]: fields[name] for name in DIT} | {
        "attention_head_dim": fields["hidden_size"] // fields["num_heads"]
    }
    small = {"hidden_size": 32, "depth": 1, "num_heads": 2}
    return Sized(of_latents(4, {"name": "dit"} | fields, small), batch, ("dit", peer, {"num_layers": 1}))


MMDIT: dict[str, Any] = dict(hidden_size=768, depth=12, num_heads=12, context="text", qk_norm="rms", position_size=32)
SMALL_EDM2: dict[str, Any] = {"channel_mult": (1,), "num_blocks": 0, "attention_levels": ()}
SMALL_ADM: dict[str, Any] = {"channel_mult": (1,), "num_res_blocks": 1, "attention_downsamples": ()}
# The batches are what fits 80 GB without remat.
NETWORKS = {
    "DiT-S/2": dit_on_latents("S", 256),
    "DiT-B/2": dit_on_latents("B", 256),
    "DiT-L/2": dit_on_latents("L", 128),
    "DiT-XL/2": dit_on_latents("XL", 128),
    "MMDiT, depth 12": Sized(
        of_latents(
            16,
            {"name": "mmdit", "context_width": WIDTH, "pooled_width": WIDTH} | MMDIT,
            {"hidden_size": 32, "depth": 1, "num_heads": 2},
            texts=True,
        ),
        *(
            128,
            (
                "mmdit",
                {"num_layers": 12, "num_attention_heads": 12, "caption_projection_dim": 768, "qk_norm": "rms_norm"},
                {"num_layers": 1},
            ),
        ),
    ),
    "EDM2-S, 64x64": Sized(of_images(edm2_s, SMALL_EDM2), 64, ("edm2", {}, SMALL_EDM2)),
    "ADM, ImageNet-64": Sized(of_images(adm_ddpm.get_config, SMALL_ADM), 64, ("adm", {}, SMALL_ADM)),
}


class Compiled(NamedTuple):
    """A training that can be begun; nothing of it is on the device yet.

    Attributes:
        task: of the configuration.
        batch_size: images a step.
        init: compiled key -> state.
        step: compiled (state, frozen, batch, key) -> state, metrics; the state's memory is given away.
        seconds: that compiling the step took.
    """

    task: Any
    batch_size: int
    init: Any
    step: Any
    seconds: float

    def begin(self) -> tuple[TrainState, Batch]:
        """A state and random data on the device."""
        return self.init(jax.random.key(0)), random_batch(self.task, self.batch_size)


def compiled(config: Any, batch_size: int) -> Compiled:
    """Compile initialisation and step from shapes alone."""
    config.batch_size = batch_size
    task: Any = make_task(config)
    key = jax.eval_shape(jax.random.key, 0)
    init = jax.jit(lambda key: task.init(key, {}))
    begun = time.perf_counter()
    lowered = jax.jit(task.step, donate_argnums=0).lower(
        jax.eval_shape(init, key), {}, shapes(task.fields, batch_size), key
    )
    step = lowered.compile()
    return Compiled(task, batch_size, init.lower(key).compile(), step, time.perf_counter() - begun)


def random_batch(task: Any, batch_size: int) -> Batch:
    """Data of the shapes that the task takes."""
    random = np.random.default_rng(2)  # which compiles nothing

    def fill(leaf: Any) -> jax.Array:
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            return jnp.asarray(random.integers(0, task.num_classes, leaf.shape).astype(leaf.dtype))
        return jnp.asarray(np.clip(random.normal(0, 0.5, leaf.shape), -1, 1).astype(leaf.dtype))

    return {name: fill(leaf) for name, leaf in shapes(task.fields, batch_size).items()}


def operations(made: Compiled) -> float:
    """Floating-point operations of a training step for one image."""
    return TRAINING * forward(made.task, jax.eval_shape(made.task.init, jax.random.key(0), {}))


def counted_memory() -> int | None:
    """The most bytes of the device that were in use at once, where it counts them."""
    counted = jax.devices()[0].memory_stats()
    return None if counted is None else counted.get("peak_bytes_in_use")
