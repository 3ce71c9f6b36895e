"""The cases of diffusers' autoencoders: moments, samples, codes, images."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.interop.autoencoder_names import rename_autoencoder
from archirf_jax.interop.taesd_names import rename_taesd
from archirf_jax.interop.weights import Rename, to_params
from archirf_jax.models.autoencoder_kl import AutoencoderKL
from archirf_jax.models.autoencoder_tiny import AutoencoderTiny
from archirf_jax.models.latents import Gaussian
from archirf_jax.models.vq_model import VQModel
from tests.golden.adm import nhwc
from tests.golden.case import Case, UnsupportedSource, choice, settings

# What the references' constructors assume where a case names no value.
SHARED: dict[str, Any] = dict(
    in_channels=3,
    out_channels=3,
    down_block_types=("DownEncoderBlock2D",),
    up_block_types=("UpDecoderBlock2D",),
    block_out_channels=(64,),
    layers_per_block=1,
    act_fn="silu",
    norm_num_groups=32,
    sample_size=32,
    scaling_factor=0.18215,
    mid_block_add_attention=True,
    force_upcast=True,
)
KL = SHARED | dict(
    latent_channels=4,
    shift_factor=None,
    latents_mean=None,
    latents_std=None,
    use_quant_conv=True,
    use_post_quant_conv=True,
)
VQ = SHARED | dict(
    latent_channels=3,
    num_vq_embeddings=256,
    vq_embed_dim=None,
    norm_type="group",
    lookup_from_codebook=False,
    force_upcast=False,
)
TINY: dict[str, Any] = dict(
    in_channels=3,
    out_channels=3,
    encoder_block_out_channels=(64, 64, 64, 64),
    decoder_block_out_channels=(64, 64, 64, 64),
    act_fn="relu",
    upsample_fn="nearest",
    latent_channels=4,
    upsampling_scaling_factor=2,
    num_encoder_blocks=(1, 3, 3, 3),
    num_decoder_blocks=(3, 3, 3, 1),
    latent_magnitude=3,
    latent_shift=0.5,
    force_upcast=False,
    scaling_factor=1.0,
    shift_factor=0.0,
)
ATTENDS = {"DownEncoderBlock2D": False, "AttnDownEncoderBlock2D": True}
ATTENDS_UP = {"UpDecoderBlock2D": False, "AttnUpDecoderBlock2D": True}


def kl(case: Case) -> dict[str, np.ndarray]:
    """Moments of the images, divergence, samples and what is decoded from them."""
    given = settings("hyper-parameter", case.hyperparameters, KL)
    model = AutoencoderKL(
        **shared(given),
        latent_channels=given["latent_channels"],
        shift_factor=given["shift_factor"] or 0.0,
        latents_mean=_tuple(given["latents_mean"]),
        latents_std=_tuple(given["latents_std"]),
        use_quant_conv=given["use_quant_conv"],
        use_post_quant_conv=given["use_post_quant_conv"],
    )
    x = jnp.asarray(nhwc(case.inputs["x"]))
    variables = bound(model, case, x, rename_autoencoder(model))
    posterior = Gaussian.of(run(model, variables, "encode", x))
    decoded = run(model, variables, "decode", posterior.mode())
    found = {"mean": posterior.mode(), "logvar": posterior.logvar, "kl": posterior.kl(), "decoded_mean": decoded}
    if "noise" in case.inputs:
        found["sample"] = sample = posterior.sample(jnp.asarray(nhwc(case.inputs["noise"])))
        found["latent"] = latent = model.normalized(sample)
        found["decoded_sample"] = run(model, variables, "decode", model.denormalized(latent))
    return {name: nchw(value) for name, value in found.items()}


def vq(case: Case) -> dict[str, np.ndarray]:
    """Latents of the images, their codes, and what is decoded from them."""
    given = settings("hyper-parameter", case.hyperparameters, VQ)
    choice("hyper-parameter lookup_from_codebook", given["lookup_from_codebook"], {False: False})
    model = VQModel(
        **shared(given),
        latent_channels=given["latent_channels"],
        num_vq_embeddings=given["num_vq_embeddings"],
        vq_embed_dim=given["vq_embed_dim"],
        norm_type=choice("hyper-parameter norm_type", given["norm_type"], {"group": "group", "spatial": "spatial"}),
        commitment_weight=1.0,
        codebook_weight=0.25,
    )
    x = jnp.asarray(nhwc(case.inputs["x"]))
    variables = bound(model, case, x, rename_autoencoder(model))
    z = run(model, variables, "encode", x)
    codes = run(model, variables, "quantize", z)
    found = {"latents": z, "quantized": codes.z, "decoded": run(model, variables, "decode", z)}
    numbers = {"indices": np.asarray(codes.indices), "commit_loss": np.asarray(jnp.mean(codes.loss))}
    return numbers | {name: nchw(value) for name, value in found.items()}


def tiny(case: Case) -> dict[str, np.ndarray]:
    """Latents of the images, as pictures too, and what is decoded from them and from others."""
    given = settings("hyper-parameter", case.hyperparameters, TINY)
    for name, value in dict(act_fn="relu", upsample_fn="nearest", upsampling_scaling_factor=2).items():
        choice(f"hyper-parameter {name}", given[name], {value: value})
    widths = [set(given[f"{half}_block_out_channels"]) for half in ("encoder", "decoder")]
    if any(len(width) > 1 for width in widths):
        raise UnsupportedSource("levels of different widths, which the reference does not connect")
    model = AutoencoderTiny(
        width=widths[0].pop(),
        decoder_width=widths[1].pop(),
        num_encoder_blocks=tuple(given["num_encoder_blocks"]),
        num_decoder_blocks=tuple(given["num_decoder_blocks"]),
        **{name: given[name] for name in ("latent_channels", "out_channels", "latent_magnitude", "latent_shift")},
    )
    x, z = (jnp.asarray(nhwc(case.inputs[name])) for name in ("x", "z"))
    variables = bound(model, case, x, rename_taesd(model))
    latents = run(model, variables, "encode", x)
    decoded = {
        name: run(model, variables, "decode", value) for name, value in {"decoded": latents, "decoded_z": z}.items()
    }
    found = {"latents": latents, "scaled": model.to_picture(latents)} | decoded
    return {name: nchw(value) for name, value in found.items()}


def shared(given: dict[str, Any]) -> dict[str, Any]:
    """The fields of the body.

    Raises:
        UnsupportedSource: a setting that nothing of this project stands against.
    """
    choice("hyper-parameter act_fn", given["act_fn"], {"silu": "silu", "swish": "silu"})
    widths = tuple(given["block_out_channels"])
    down = [choice("down block", kind, ATTENDS) for kind in given["down_block_types"]]
    up = [choice("up block", kind, ATTENDS_UP) for kind in given["up_block_types"]]
    if not len(down) == len(up) == len(widths) or down != up[::-1]:
        raise UnsupportedSource("levels of the two halves that differ")
    return dict(
        out_channels=given["out_channels"],
        block_out_channels=widths,
        layers_per_block=given["layers_per_block"],
        norm_num_groups=given["norm_num_groups"],
        attention_levels=tuple(level for level, attends in enumerate(down) if attends),
        mid_block_add_attention=given["mid_block_add_attention"],
        scaling_factor=given["scaling_factor"],
    )


def bound(model: Any, case: Case, x: jax.Array, rename: Rename) -> dict[str, Any]:
    """The case's parameters as those of the network."""
    like = jax.eval_shape(model.init, jax.random.key(0), x)["params"]
    return {"params": to_params(case.params, like, rename)}


def run(model: Any, variables: dict[str, Any], method: str, *inputs: Any) -> Any:
    """What a method of a network answers."""
    return program(model, method)(variables, *inputs)


@functools.cache
def program(model: Any, method: str | None = None) -> Any:
    """A method of a network, traced and compiled once for all cases of it."""
    return jax.jit(functools.partial(model.apply, method=method))


def nchw(value: Any) -> np.ndarray:
    """Maps from NHWC; anything else as it is."""
    value = np.asarray(value)
    return np.moveaxis(value, -1, 1) if value.ndim == 4 else value


def _tuple(values: Any) -> tuple[float, ...] | None:
    return None if values is None else tuple(values)
