"""ADM cases: guided-diffusion's U-Net, its upsampler, and its classifier with the gradient that guides."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.interop import adm, weights
from archirf_jax.models.adm_classifier import POOLS, ADMClassifier
from archirf_jax.models.adm_unet import ADMUNet
from tests.golden.case import Case, UnsupportedSource, choice, programs, settings

# What the reference's constructors assume where a case names no value; None where they assume nothing.
NEEDED = ("image_size", "in_channels", "model_channels", "out_channels", "num_res_blocks", "attention_resolutions")
SHARED: dict[str, Any] = dict.fromkeys(NEEDED) | dict(
    dropout=0,
    channel_mult=(1, 2, 4, 8),
    conv_resample=True,
    dims=2,
    use_checkpoint=False,
    use_fp16=False,
    num_heads=1,
    num_head_channels=-1,
    num_heads_upsample=-1,
    use_scale_shift_norm=False,
    resblock_updown=False,
    use_new_attention_order=False,
)


def unet(case: Case) -> dict[str, np.ndarray]:
    """The output of UNetModel, or of SuperResModel where its source line says so."""
    super_resolution = "SuperResModel" in case.source
    given = settings("hyperparameter", case.hyperparameters, SHARED | dict(num_classes=None))
    model = ADMUNet(
        num_classes=given["num_classes"],
        class_conditional=given["num_classes"] is not None,
        num_heads_upsample=_given(given["num_heads_upsample"]),
        out_channels=given["out_channels"],
        super_resolution=super_resolution,
        **shared(given),
    )
    x, t = nhwc(case.inputs["x"]), case.inputs["t"]
    condition = {"label": case.inputs["y"].astype(np.int32)} if "y" in case.inputs else {}
    if super_resolution:
        condition["low_res"] = nhwc(case.inputs["low_res"])
    init, apply = programs(model)
    like = init.eval_shape(jax.random.key(0), x, t, condition)["params"]
    params = weights.to_params(case.params, like, adm.rename_unet(model))
    out = apply({"params": params}, x, t, condition)
    return {"y": np.moveaxis(np.asarray(out), -1, 1)}


def classifier(case: Case) -> dict[str, np.ndarray]:
    """Logits of EncoderUNetModel and, where there are labels, the gradient of their log-probability in the images."""
    given = settings("hyperparameter", case.hyperparameters, SHARED | dict(pool="adaptive"))
    model = ADMClassifier(
        num_classes=given["out_channels"],
        image_size=given["image_size"],
        pool=choice("hyperparameter pool", given["pool"], {pool: pool for pool in POOLS}),
        **shared(given),
    )
    x, t = nhwc(case.inputs["x"]), case.inputs["t"]
    like = programs(model)[0].eval_shape(jax.random.key(0), x, t)["params"]
    params = weights.to_params(case.params, like, adm.rename_classifier(model))
    y = case.inputs.get("y", np.zeros(len(x))).astype(np.int32)
    gradient, logits = guidance(model)(x, params, t, y)
    found = {"logits": np.asarray(logits)}
    return found | ({"grad_x": np.moveaxis(np.asarray(gradient), -1, 1)} if "y" in case.inputs else {})


@functools.cache
def guidance(model: ADMClassifier) -> Any:
    """(x, params, t, y) -> (gradient of the log-probability of y in x, logits), compiled."""

    def log_probability(x: jax.Array, params: Any, t: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        logits = jnp.asarray(model.apply({"params": params}, x, t))
        return jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], axis=-1).sum(), logits

    return jax.jit(jax.grad(log_probability, has_aux=True))


def shared(given: dict[str, Any]) -> dict[str, Any]:
    """The fields of both networks."""
    for name in NEEDED:
        if given[name] is None:
            raise UnsupportedSource(f"hyperparameter {name!r} is missing")
    choice("hyperparameter dims", given["dims"], {2: 2})
    choice("hyperparameter use_fp16", given["use_fp16"], {False: False})
    levels = [2**level for level in range(len(given["channel_mult"]))]
    return dict(
        model_channels=given["model_channels"],
        num_res_blocks=given["num_res_blocks"],
        channel_mult=tuple(given["channel_mult"]),
        # The reference passes over factors that no level has.
        attention_downsamples=tuple(factor for factor in levels if factor in given["attention_resolutions"]),
        num_heads=given["num_heads"],
        num_head_channels=_given(given["num_head_channels"]),
        attention_order="new" if given["use_new_attention_order"] else "legacy",
        scale_shift_norm=given["use_scale_shift_norm"],
        resblock_updown=given["resblock_updown"],
        conv_resample=given["conv_resample"],
        dropout=float(given["dropout"]),
    )


def _given(number: int) -> int | None:
    # The reference's -1.
    return number if number > 0 else None


def nhwc(images: np.ndarray) -> np.ndarray:
    """From NCHW."""
    return np.moveaxis(images, 1, -1)
