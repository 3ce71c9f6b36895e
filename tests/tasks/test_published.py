"""Published weights become runs that give the references' numbers, and come back bit for bit."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.interop import files
from archirf_jax.interop.adm_names import rename_unet
from archirf_jax.interop.files import Tensor
from archirf_jax.interop.weights import to_state
from archirf_jax.models import binding
from archirf_jax.models.adm_unet import ADMUNet
from archirf_jax.tasks.building import make_task
from archirf_jax.tasks.published import export, load
from tests.golden import cases
from tests.golden.case import Case
from tests.tasks.settings import config as config_with
from tests.tasks.settings import moved, noisy

GOLDEN = pathlib.Path(cases.__file__).parent
# Golden case -> its kind of weights, and what its shapes do not show.
HINTS: dict[str, tuple[str, dict[str, Any]]] = {
    "dit_learn_sigma": ("dit", dict(num_heads=3)),
    "dit_patch4": ("dit", dict(num_heads=4)),
    "mmdit_sd3": ("sd3", {}),
    "mmdit_sd35_rms": ("sd3", {}),
    "adm_class_cond": ("adm", dict(num_head_channels=16)),
    "adm_uncond_simple": ("adm", dict(num_heads=2, attention_order="new")),
    "adm_classifier": ("adm-classifier", dict(num_head_channels=16)),
    "edm2_class_cond": ("edm2", dict(channels_per_head=16)),
    "edm2_uncond": ("edm2", dict(channels_per_head=16)),
}
# One a kind: a tensor that the fields do not need, another, and a shape that it might have been given.
WRONG = {
    "dit_learn_sigma": ("blocks.1.mlp.fc2.bias", "final_layer.linear.bias", (3,)),
    "mmdit_sd3": ("joint_blocks.1.x_block.mlp.fc2.bias", "context_embedder.bias", (1, 128)),
    "adm_class_cond": ("middle_block.1.proj_out.bias", "out.2.bias", (3,)),
    "adm_classifier": ("middle_block.1.proj_out.bias", "out.2.c_proj.bias", (11,)),
    "edm2_class_cond": ("unet.enc.8x8_block0.emb_gain", "unet.emb_fourier.freqs", (33,)),
}


class Imported(NamedTuple):
    """A golden case that went through a file."""

    case: Case
    path: pathlib.Path
    config: Any
    task: Any
    params: Any


def imported_run(case: Case, name: str, folder: pathlib.Path) -> Imported:
    source, hints = HINTS[name]
    files.write(case.params, folder / "given.safetensors")
    config, params = load(source, dict(files.read(folder / "given.safetensors")), hints)
    config = ml_collections.ConfigDict(config).lock()
    return Imported(case, folder / "given.safetensors", config, make_task(config), params)


def exported(config: Any, params: Any) -> dict[str, np.ndarray]:
    config = ml_collections.ConfigDict(config)
    return export(config, make_task(config), params)


def some(names: Iterable[str]) -> list[Any]:
    """The golden cases as parameters, of which the quick tests import one of each kind and a U-Net without labels."""
    quick = {*WRONG, "adm_uncond_simple"}
    return [name if name in quick else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture(scope="module", params=some(HINTS))
def imported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Imported:
    case = cases.load(GOLDEN / f"{request.param}.npz")
    return imported_run(case, request.param, tmp_path_factory.mktemp(request.param))


def conditions(case: Case) -> Any:
    """What the network takes in addition to images and times."""
    given = case.inputs
    if "context" in given:
        return {"tokens": given["context"], "pooled": given["pooled"]}
    if "labels" in given:
        label = np.where(given["labels"].any(1), given["labels"].argmax(1), given["labels"].shape[1])
        return {"label": label.astype(np.int32)}
    return {"label": given.get("y", np.zeros(len(given["x"]))).astype(np.int32)}


def nhwc(images: np.ndarray) -> jax.Array:
    return jnp.asarray(images.transpose(0, 2, 3, 1))


def nchw(images: Any) -> np.ndarray:
    return np.asarray(images).transpose(0, 3, 1, 2)


def numbers(imported: Imported) -> dict[str, np.ndarray]:
    """The case's outputs by the task of the run."""
    case, task, params = imported.case, imported.task, imported.params
    x, y = nhwc(case.inputs["x"]), conditions(case)
    model_fn = binding.bind(task.module, params[task.main])
    if "sigma" in case.inputs:
        t = jnp.asarray(task.process.time_of_ratio(case.inputs["sigma"]))
        noised = task.process.noised(x, nhwc(case.inputs["noise"]), t)
        inputs = task.process.network_input(noised, t), task.process.network_time(t)
        output, extras = jax.jit(model_fn)(*inputs, y)
        denoised = task.process.interpret(output, noised, t).x0
        return {"denoised": nchw(denoised), "logvar": np.asarray(extras["log_variance"])[:, None, None, None]}
    t = jnp.asarray(case.inputs["t"], jnp.float32)
    if "logits" in case.outputs:
        log_p, times = task.log_p(params), (t + 1) / task.process.steps  # the network is given the step
        slope, each = jax.jit(lambda x: (jax.grad(lambda x: jnp.sum(log_p(x, times, y)))(x), log_p(x, times, y)))(x)
        expected = jax.nn.log_softmax(case.outputs["logits"])[np.arange(len(x)), y["label"]]
        np.testing.assert_allclose(each, expected, rtol=1e-4)
        return {"grad_x": nchw(slope)}
    return {"y": nchw(jax.jit(model_fn)(x, t, y)[0])}


def test_the_network_of_an_imported_run_gives_the_numbers_of_the_reference(imported: Imported) -> None:
    found = numbers(imported)
    for name, ours in found.items():
        assert cases.relative_error(ours, imported.case.outputs[name]) < 1e-4, name


def test_export_gives_the_imported_tensors_back_bit_for_bit(imported: Imported) -> None:
    given, back = files.read(imported.path), exported(imported.config, imported.params)
    assert back.keys() == given.keys() == imported.case.params.keys()
    for name, value in imported.case.params.items():
        assert back[name].dtype == np.float32 and back[name].shape == value.shape
        assert back[name].tobytes() == value.tobytes(), name


def test_an_imported_configuration_keeps_where_it_came_from(imported: Imported) -> None:
    assert imported.config.imported.source in dict(HINTS.values())
    assert imported.config.imported.prefix == "" and imported.config.imported.constants == []
    assert imported.config.data.channels == imported.case.inputs["x"].shape[1]


def golden(name: str) -> dict[str, np.ndarray]:
    return dict(cases.load(GOLDEN / f"{name}.npz").params)


def unreadable(name: str, value: np.ndarray) -> Tensor:
    def read() -> None:
        raise AssertionError(f"{name} was read")

    return Tensor(value.shape, read)


@pytest.mark.parametrize("name", WRONG)
def test_missing_needless_and_misshapen_tensors_are_named_in_one_line_before_any_is_read(name: str) -> None:
    (source, hints), (absent, misshapen, shape) = HINTS[name], WRONG[name]
    state = {key: unreadable(key, value) for key, value in golden(name).items()}
    was = state[misshapen].shape
    del state[absent]
    state |= {misshapen: unreadable(misshapen, np.zeros(shape)), "other.weight": unreadable("other", np.zeros(2))}
    with pytest.raises(UserError) as caught:
        load(source, state, hints)
    line = str(caught.value)
    assert caught.value.field == "checkpoint" and "\n" not in line
    assert all(part in line for part in (absent, "other.weight", f"{misshapen} {shape} instead of {was}"))


@pytest.fixture(scope="module")
def patch4() -> dict[str, np.ndarray]:
    """DiT's tensors with its table of positions, by the formula of the reference in float64."""
    frequencies = 10_000 ** (-np.arange(16) / 16)
    places = [np.outer(axis, frequencies) for axis in (np.tile(np.arange(4), 4), np.repeat(np.arange(4), 4))]
    table = np.concatenate([f(angles) for angles in places for f in (np.sin, np.cos)], axis=1)
    return golden("dit_patch4") | {"pos_embed": table[None].astype(np.float32)}


def test_dits_table_of_positions_decides_the_size_of_images_and_is_exported(patch4: dict[str, np.ndarray]) -> None:
    config, params = load("dit", patch4, HINTS["dit_patch4"][1])
    assert config["data"]["image_size"] == 16 and config["imported"]["constants"] == ["pos_embed"]
    back = exported(config, params)
    assert back.keys() == patch4.keys()
    np.testing.assert_allclose(back["pos_embed"], patch4["pos_embed"], atol=1e-6)


def test_a_table_of_positions_in_half_precision_is_taken_and_another_is_refused(patch4: dict[str, np.ndarray]) -> None:
    half = {name: value.astype(np.float16) for name, value in patch4.items()}
    assert load("dit", half, dict(num_heads=4))[0]["imported"]["constants"] == ["pos_embed"]
    wrong = patch4 | {"pos_embed": patch4["pos_embed"][..., ::-1]}
    for state, hints in ((wrong, {}), (patch4, dict(image_size=32))):
        with pytest.raises(UserError, match="pos_embed") as caught:
            load("dit", state, dict(num_heads=4) | hints)
        assert caught.value.field == "checkpoint"


def test_of_a_whole_system_the_network_is_imported_and_exported_under_its_prefix() -> None:
    prefix, own = "model.diffusion_model.", golden("mmdit_sd3")
    whole = {f"{prefix}{name}": value for name, value in own.items()}
    others = {"first_stage_model.decoder.conv_in.bias": np.zeros(3), "text_encoders.t5xxl.logit_scale": np.zeros(())}
    config, params = load("sd3", whole | others, {})
    assert config["imported"]["prefix"] == prefix
    back = exported(config, params)
    assert back.keys() == whole.keys()
    assert all(back[name].tobytes() == value.tobytes() for name, value in whole.items())


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_weights_of_other_precisions_become_float32(kind: Any) -> None:
    own = {name: value.astype(kind) for name, value in golden("edm2_uncond").items()}
    tensors = {name: Tensor(value.shape, functools.partial(np.copy, value)) for name, value in own.items()}
    _, params = load("edm2", tensors, dict(channels_per_head=16))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(params["model"]["network"]["out_gain"], own["unet.out_gain"].astype(np.float32))


def upsampler(size: int = 8) -> tuple[dict[str, Any], ADMUNet, Any]:
    """(published tensors of a small upsampler, the network, its parameters)."""
    fields: dict[str, Any] = dict(
        model_channels=32, num_res_blocks=1, channel_mult=(1,), attention_downsamples=(), num_heads=2
    )
    model = ADMUNet(num_classes=3, super_resolution=True, learn_sigma=True, **fields)
    images = jnp.zeros((1, size, size, 3))
    condition = {"label": jnp.zeros(1, jnp.int32), "low_res": images[:, ::4, ::4]}
    shapes = jax.eval_shape(lambda: binding.init(model, jax.random.key(0), images, jnp.zeros(1), condition))
    params = moved(shapes, scale=0.1)
    return to_state(jax.tree.map(np.asarray, params), rename_unet(model)), model, params


def test_an_upsampler_is_imported_with_its_small_image_as_a_given_condition() -> None:
    state, model, params = upsampler()
    config, found = load("adm-superres", state, dict(num_heads=2, image_size=8))
    task: Any = make_task(ml_collections.ConfigDict(config))
    assert task.needs == {"label", "low_res"} and task.null_names == {"label"}
    jax.tree.map(np.testing.assert_array_equal, found["model"], params)
    back = exported(config, found)
    assert back.keys() == state.keys() and all(back[name].tobytes() == state[name].tobytes() for name in state)
    batch = {"label": jnp.arange(2), "low_res": jax.random.normal(jax.random.key(1), (2, 2, 2, 3))}
    keys = jax.random.split(jax.random.key(2), 2)
    draw = task.sampler(task.sampling.replace(steps=3))
    images = draw(found, {}, batch, keys)
    assert images.shape == (2, 8, 8, 3) and np.all(np.abs(images) <= 1)
    assert np.any(images != draw(found, {}, batch | {"low_res": -batch["low_res"]}, keys))


@pytest.fixture
def small() -> Any:
    """A DiT that the published network could be."""
    return config_with(changes={"model.registers": 0, "model.qk_norm": None, "model.num_heads": 2})


def test_what_is_exported_can_be_imported_as_the_same_network(small: Any) -> None:
    params = noisy(make_task(small))
    state = exported(small, params)
    assert "pos_embed" in state
    kernel = np.asarray(params["model"]["block_0"]["attention"]["out"]["kernel"])
    np.testing.assert_array_equal(state["blocks.0.attn.proj.weight"], kernel.T)
    config, found = load("dit", state, dict(num_heads=2))
    assert config["data"]["num_classes"] == 3 and config["data"]["image_size"] == 8
    jax.tree.map(np.testing.assert_array_equal, found, params)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"model.registers": 2}, "model"),
        ({"model.positions": "rotary"}, "model.positions"),
        ({"objective": {"name": "uncertainty"}}, "objective.name"),
    ],
)
def test_a_network_that_was_not_published_is_not_exported(changes: dict[str, Any], field: str) -> None:
    config = config_with(changes={"model.registers": 0, "model.qk_norm": None} | changes)
    task: Any = make_task(config)
    with pytest.raises(UserError) as caught:
        export(config, task, moved(jax.eval_shape(task.init_params, jax.random.key(0), {})))
    assert caught.value.field == field


def test_a_network_of_ones_own_is_not_exported(small: Any) -> None:
    task: Any = make_task(small)
    small.model.name = "my_lab.my_net"
    with pytest.raises(UserError) as caught:
        export(small, task, {})
    assert caught.value.field == "model.name"
