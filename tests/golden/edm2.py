"""EDM2 cases: NVlabs/edm2's preconditioned U-Net with its expected loss, through the process `edm` and `Uncertain`."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.interop import edm2, weights
from archirf_jax.models.binding import bind
from archirf_jax.models.edm2_unet import EDM2UNet
from archirf_jax.models.uncertainty import Uncertain
from archirf_jax.processes.edm import EDM
from tests.golden.case import Case, settings
from tests.golden.synthetic import synthetic

# What the reference's constructors assume where a case names no value; half precision is for GPUs alone.
NEEDED = dict(img_resolution=0, img_channels=0, label_dim=0)
AROUND = dict(use_fp16=True, sigma_data=0.5, logvar_channels=128)
NETWORK = dict(model_channels=192, channel_mult=[1, 2, 3, 4], num_blocks=3, attn_resolutions=[16, 8])
OPTIONAL: dict[str, Any] = dict(channel_mult_noise=None, channel_mult_emb=None, clip_act=256)
ASIS = dict(channels_per_head=64, label_balance=0.5, concat_balance=0.5, res_balance=0.3, attn_balance=0.3, dropout=0.0)
DEFAULTS = NEEDED | AROUND | NETWORK | OPTIONAL | ASIS | dict(resample_filter=[1, 1])


@functools.cache
def parameter(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The synthetic parameter; gains are 0.8, frequencies and phases spread as far as the network's own."""
    scales = {"freqs": 2 * np.pi * 10, "phases": 2 * np.pi * 5}
    if name.endswith("gain"):
        return np.full(shape, 0.8, np.float32)
    return np.asarray(scales.get(name.rpartition(".")[2], 1.0) * synthetic(name, shape), np.float32)


def network(given: dict[str, Any]) -> EDM2UNet:
    """The network of a case's settings."""
    multiples, size, per_head = given["channel_mult"], given["img_resolution"], given["channels_per_head"]
    # Published levels narrower than a head attend nowhere, without a word.
    wide = [given["model_channels"] * times >= per_head for times in multiples]
    attends = [size >> level in given["attn_resolutions"] for level in range(len(multiples))]
    others: dict[str, Any] = {name: given[name] for name in OPTIONAL} | {name: given[name] for name in ASIS}
    return EDM2UNet(
        num_classes=given["label_dim"] or None,
        class_conditional=given["label_dim"] > 0,
        model_channels=given["model_channels"],
        channel_mult=tuple(multiples),
        num_blocks=given["num_blocks"],
        attention_levels=tuple(level for level in range(len(multiples)) if wide[level] and attends[level]),
        middle_attention=wide[-1 if given["num_blocks"] else 0],
        resample_filter=tuple(given["resample_filter"]),
        **others,
    )


def run(case: Case) -> dict[str, np.ndarray]:
    """Denoised images before and after weights are made unit, the expected loss, the raw network, losses, a weight."""
    given = settings("setting", case.hyperparameters, DEFAULTS)
    process = EDM(sigma_data=given["sigma_data"])
    model = Uncertain(network(given), process.time_scale, given["logvar_channels"])
    x0, eps = (jnp.asarray(case.inputs[name].transpose(0, 2, 3, 1)) for name in ("x", "noise"))
    y: Any
    t, y = jnp.asarray(process.time_of_ratio(case.inputs["sigma"])), _labels(case, given["label_dim"])
    network_time, x = process.network_time(t), process.noised(x0, eps, t)

    like = jax.eval_shape(model.init, jax.random.key(0), x, t, y)["params"]
    params = weights.to_params(case.params, like, edm2.rename(model, given["img_resolution"]))
    unit = jax.jit(model.normalize_weights)(params)
    apply = jax.jit(lambda params, x: bind(model, params)(x, network_time, y))
    outputs, (extras, _) = zip(*(apply(each, process.network_input(x, t)) for each in (params, unit)), strict=True)
    u = extras["log_variance"][:, None, None, None]
    denoised = [process.interpret(output, x, t).x0 for output in outputs]
    images = dict(
        denoised=denoised[0],
        denoised_train_mode=denoised[1],
        unet_raw_at_x=apply(params, x0)[0],
        # Of every number by itself; the square of the network's own error is that of x0, weighted (Eq. 14, 21).
        loss=jnp.square(outputs[0] - process.target(x0, eps, t)) / jnp.exp(u) + u,
        logvar=u,
    )
    weight = np.asarray(unit["network"]["out_conv"]["kernel"]).transpose(3, 2, 0, 1)
    found = {name: np.asarray(image).transpose(0, 3, 1, 2) for name, image in images.items()}
    return found | {"out_conv_weight_after_forced_normalization": weight}


def _labels(case: Case, classes: int) -> dict[str, np.ndarray]:
    rows = case.inputs.get("labels", np.zeros((len(case.inputs["x"]), 1)))
    return {"label": np.where(rows.any(axis=1), rows.argmax(axis=1), classes).astype(np.int32)}
