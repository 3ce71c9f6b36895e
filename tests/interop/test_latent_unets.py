"""Laws of importing latent diffusion's U-Nets: published sizes, fields from shapes, the way back, and one more step."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.interop import latent_unets, sources
from archirf_jax.interop.latent_unet_names import rename_latent_unet
from archirf_jax.interop.weights import published_shapes
from archirf_jax.models.latent_unet import LatentUNet
from archirf_jax.models.latent_unet_levels import levels_of
from archirf_jax.tasks.building import make_model, make_process, make_task
from archirf_jax.tasks.published import export, load
from tests.golden import cases
from tests.golden.latent_unet import network
from tests.tasks.settings import config as config_with

GOLDEN = pathlib.Path(cases.__file__).parent
Shapes = dict[str, tuple[int, ...]]
# Kind of weights -> parameters of the published network, and its conditions beside the text.
SIZES = {"sd15": 859_520_964, "sd2": 865_910_724, "sdxl": 2_567_463_684, "sdxl-refiner": 2_259_526_660}
SIZES |= {"sd-upscaler": 473_398_020}
MORE: dict[str, set[str]] = {"sdxl": {"size"}, "sdxl-refiner": {"size"}, "sd-upscaler": {"low_res", "noise_level"}}
QUICK = "sdxl"  # which has most parts; the others take a second or two each
# Golden case -> its kind, and what no shape shows.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "unet_sd15": ("sd15", dict(num_heads=4, norm_num_groups=8)),
    "unet_sd21": ("sd2", dict(num_head_channels=16, norm_num_groups=16)),
    "unet_sdxl": ("sdxl", dict(num_head_channels=16, norm_num_groups=8, size_width=16)),
    "unet_sd_upscaler": ("sd-upscaler", dict(norm_num_groups=8)),
}


def tensors_of(name: str) -> dict[str, np.ndarray]:
    return cases.load(GOLDEN / f"{name}.npz").params


def shapes_of(name: str) -> Shapes:
    return {key: value.shape for key, value in tensors_of(name).items()}


def described(source: str, shapes: Shapes, **hints: Any) -> Any:
    return ml_collections.ConfigDict(sources.configuration(source, shapes, hints)).lock()


def complaint(source: str, shapes: Shapes, **hints: Any) -> str:
    """The field that the refusal names."""
    with pytest.raises(UserError) as caught:
        described(source, shapes, **hints)
    assert "\n" not in str(caught.value)
    return str(caught.value.field)


def parameters(model: LatentUNet, low_res: int = 0) -> Any:
    condition = {"tokens": np.zeros((1, 1, model.context_width), np.float32)}
    condition |= {"pooled": np.zeros((1, model.pooled_width or 1)), "size": np.zeros((1, model.size_numbers))}
    condition |= {"noise_level": np.zeros(1, np.int32), "low_res": np.zeros((1, 8, 8, low_res))}
    condition |= {"inpaint": np.zeros((1, 8, 8, 5))}
    x, t = np.zeros((1, 8, 8, 4), np.float32), np.zeros(1, np.float32)
    return jax.eval_shape(model.init, jax.random.key(0), x, t, condition)["params"]


@pytest.mark.parametrize("source", [pytest.param(name, marks=[pytest.mark.slow] * (name != QUICK)) for name in SIZES])
def test_published_networks_have_their_size_and_are_known_by_shapes_alone(source: str) -> None:
    model = LatentUNet.preset(latent_unets.PUBLISHED[source]["preset"])
    like = parameters(model, low_res=3)
    assert sum(leaf.size for leaf in jax.tree.leaves(like)) == SIZES[source]
    shapes = published_shapes(like, rename_latent_unet(model))
    config = described(source, shapes)
    assert make_model(config).clone(dtype=jnp.float32) == model
    assert set(config.conditioners) == {"text"} | MORE.get(source, set())
    assert config.conditioners.text.shapes.tokens == (77, model.context_width)
    assert config.data.channels == 4 and config.data.label_key is None
    for other in set(SIZES) - {source}:
        assert complaint(other, shapes) == "checkpoint"


def test_a_network_that_fills_holes_takes_nine_channels_and_has_its_published_size() -> None:
    model = LatentUNet.preset("sd15", inpaint=True)
    like = parameters(model)
    assert sum(leaf.size for leaf in jax.tree.leaves(like)) == 859_535_364
    shapes = published_shapes(like, rename_latent_unet(model))
    config = described("sd15", shapes)
    assert shapes["conv_in.weight"] == (320, 9, 3, 3)
    assert make_model(config).clone(dtype=jnp.float32) == model and config.data.channels == 4
    assert config.conditioners.inpaint.shapes.inpaint == (64, 64, 5)  # of a network alone, from a file


@pytest.mark.parametrize("name", CASES)
def test_a_file_becomes_a_run_of_its_network_and_comes_back_bit_for_bit(name: str) -> None:
    case, (source, hints) = cases.load(GOLDEN / f"{name}.npz"), CASES[name]
    config, params = load(source, dict(case.params), hints)
    config = ml_collections.ConfigDict(config)
    expected = network(case.hyperparameters.get("unet", case.hyperparameters), low_res=source == "sd-upscaler")
    task: Any = make_task(config)
    # The numbers of heads are the hints' here; first attentions that a level does not have are of either kind.
    unseen = ("num_heads", "num_head_channels", "only_cross_attention", "out_channels")
    found = task.model.clone(dtype=jnp.float32, **{name: getattr(expected, name) for name in unseen})
    assert found == expected
    other = expected.clone(num_heads=task.model.num_heads, num_head_channels=task.model.num_head_channels)
    assert levels_of(task.model)[1:] == levels_of(other)[1:]
    back = export(config, task, params)
    assert back.keys() == case.params.keys()
    for key, value in case.params.items():
        assert back[key].tobytes() == value.tobytes() and back[key].shape == value.shape, key


def test_a_file_of_a_wrapped_network_comes_back_under_its_own_names() -> None:
    given = {f"module.{key}": value for key, value in tensors_of("unet_sd_upscaler").items()}
    config, params = load("sd-upscaler", dict(given), CASES["unet_sd_upscaler"][1])
    config = ml_collections.ConfigDict(config)
    assert export(config, make_task(config), params).keys() == given.keys()


def test_processes_are_those_of_the_publications() -> None:
    """Rombach et al. 2022: betas are linear in the root. Stable Diffusion 2's networks answer v or noise."""
    sd15: Any = make_process(described("sd15", shapes_of("unet_sd15")))
    assert (sd15.betas[0], sd15.betas[-1], len(sd15.betas)) == pytest.approx((0.00085, 0.012, 1000))
    assert sd15.prediction == "eps"
    answers = [described("sd2", shapes_of("unet_sd21"), **hint) for hint in ({}, {"prediction": "eps"})]
    assert [(config.process.prediction, config.data.image_size) for config in answers] == [("v", 96), ("eps", 64)]
    upscaler: Any = make_process(described("sd-upscaler", shapes_of("unet_sd_upscaler")))
    assert (upscaler.betas[0], upscaler.betas[-1], upscaler.prediction) == (
        pytest.approx(1e-4),
        pytest.approx(0.02),
        "v",
    )


def test_a_text_as_wide_as_a_level_leaves_its_first_attention_to_pixels() -> None:
    shapes = shapes_of("unet_sd15")
    wide = {key: (s[0], 64) if "attn2.to_k" in key or "attn2.to_v" in key else s for key, s in shapes.items()}
    config = described("sd15", wide)
    assert config.model.context_width == 64 and config.model.only_cross_attention is False
    upscaler = described("sd-upscaler", shapes_of("unet_sd_upscaler"))
    assert tuple(upscaler.model.only_cross_attention) == (False, True, False)


def test_networks_of_another_kind_are_refused() -> None:
    sees_depth = shapes_of("unet_sd15") | {"conv_in.weight": (32, 5, 3, 3)}
    assert complaint("sd15", sees_depth) == "checkpoint"
    assert complaint("sd-upscaler", shapes_of("unet_sd15")) == "checkpoint"  # reads no image
    assert complaint("sd2", shapes_of("unet_sdxl")) == "checkpoint"  # reads sizes
    assert complaint("sdxl", shapes_of("unet_sdxl")) == "model.size_width"  # 256 is too wide
    assert complaint("sd15", {"conv_in.weight": (1, 2, 3, 3)}) == "checkpoint"


@pytest.mark.slow
def test_steps_of_training_move_every_parameter() -> None:
    """The layers that start at zero move first, and what lies behind them has a gradient from the next step on."""
    text = dict(name="given", shapes={"tokens": (3, 6), "mask": (3,)})
    model = dict(name="latent_unet", block_out_channels=(8,), transformer_depth=0, layers_per_block=1)
    model |= dict(num_heads=2, context_width=6, norm_num_groups=2)
    process = dict(name="ddpm", schedule="scaled_linear", steps=1000, prediction="v", variance="fixed_small")
    config: Any = config_with(changes={"model": model, "process": process, "conditioners": {"text": text}})
    task: Any = make_task(config)
    random = np.random.default_rng(0)
    batch = {"image": random.normal(size=(4, 4, 4, 1)).astype(np.float32)}
    batch |= {"tokens": random.normal(size=(4, 3, 6)).astype(np.float32), "mask": np.ones((4, 3), bool)}
    first = state = jax.jit(task.init)(jax.random.key(0), {})
    step = jax.jit(task.step)
    for i in range(4):
        state, metrics = step(state, {}, batch, jax.random.key(i))
        assert jax.tree.all(jax.tree.map(lambda value: bool(np.all(np.isfinite(value))), metrics))
    before, after = (made.networks["model"].params for made in (first, state))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(before["model"]["output"]))  # it answers 0 at first
    for (path, old), new in zip(jax.tree.leaves_with_path(before), jax.tree.leaves(after), strict=True):
        assert np.any(old != new), jax.tree_util.keystr(path)
