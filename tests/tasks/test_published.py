"""Published weights become runs that give the references' numbers, and come back bit for bit."""

from __future__ import annotations

import functools
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from archirf_jax import registry, tasks
from archirf_jax.errors import UserError
from archirf_jax.interop import files
from archirf_jax.interop.files import Tensor
from archirf_jax.launch import config as configuration
from archirf_jax.tasks.published import export, load
from archirf_jax.training.checkpoints import Checkpoints
from archirf_jax.training.state import TrainState
from tests.golden import cases
from tests.golden.case import Case

GOLDEN = pathlib.Path(cases.__file__).parent
# Golden case -> its kind of weights, and what its shapes do not tell.
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
    """A golden case that went through a file and a run directory."""

    case: Case
    path: pathlib.Path
    workdir: pathlib.Path
    config: Any
    task: Any
    params: Any


def make_run(config: dict[str, Any], params: Any, workdir: pathlib.Path) -> Any:
    """A run directory with these averages; its configuration as it is read again."""
    checkpoints = Checkpoints(workdir / "checkpoints", keep=1)
    checkpoints.save(TrainState(step=jnp.int32(0), params={}, ema=params, opt=()), config)
    checkpoints.wait()
    checkpoints.close()
    configuration.save(ml_collections.ConfigDict(config), workdir)
    return configuration.load(workdir)


def imported_run(case: Case, name: str, folder: pathlib.Path) -> Imported:
    source, hints = HINTS[name]
    files.write(case.params, folder / "given.safetensors")
    config, params = load(source, dict(files.read(folder / "given.safetensors")), hints)
    config = make_run(config, params, folder / "run")
    task = registry.build(tasks, "config.task", config.task, {"config": config})
    like = jax.eval_shape(task.init_params, jax.random.key(0))
    step, params = Checkpoints(folder / "run" / "checkpoints").restore_ema(like)
    assert step == 0
    return Imported(case, folder / "given.safetensors", folder / "run", config, task, params)


@pytest.fixture(scope="module", params=HINTS)
def imported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Imported:
    case = cases.load(GOLDEN / f"{request.param}.npz")
    return imported_run(case, request.param, tmp_path_factory.mktemp(request.param))


def exported(config: Any, workdir: pathlib.Path, step: int | None = None) -> dict[str, np.ndarray]:
    return export(config, Checkpoints(workdir / "checkpoints"), step)[1]


def conditions(case: Case) -> Any:
    """What the network is told beside images and times."""
    given = case.inputs
    if "context" in given:
        return {"tokens": given["context"], "pooled": given["pooled"]}
    if "labels" in given:
        return np.where(given["labels"].any(1), given["labels"].argmax(1), given["labels"].shape[1]).astype(np.int32)
    return given.get("y", np.zeros(len(given["x"]))).astype(np.int32)


def nhwc(images: np.ndarray) -> jax.Array:
    return jnp.asarray(images.transpose(0, 2, 3, 1))


def nchw(images: Any) -> np.ndarray:
    return np.asarray(images).transpose(0, 3, 1, 2)


def numbers(imported: Imported) -> dict[str, np.ndarray]:
    """The case's outputs by the task of the run."""
    case, task, params = imported.case, imported.task, imported.params
    x, y = nhwc(case.inputs["x"]), conditions(case)
    if "sigma" in case.inputs:
        t = jnp.asarray(task.process.time_of_ratio(case.inputs["sigma"]))
        noised = task.process.noised(x, nhwc(case.inputs["noise"]), t)
        told, seen = task.process.network_time(t), task.process.network_input(noised, t)
        output = jax.jit(task.model_fn(params))(seen, told, y)
        denoised = task.process.interpret(output, noised, t).x0
        return {"denoised": nchw(denoised), "logvar": nchw(output[:, :1, :1, -1:])}
    t = jnp.asarray(case.inputs["t"], jnp.float32)
    if "logits" in case.outputs:
        log_p = task.log_p(params)
        slope, each = jax.jit(lambda x: (jax.grad(lambda x: jnp.sum(log_p(x, t, y)))(x), log_p(x, t, y)))(x)
        expected = jax.nn.log_softmax(case.outputs["logits"])[np.arange(len(y)), y]
        np.testing.assert_allclose(each, expected, rtol=1e-4)
        return {"grad_x": nchw(slope)}
    return {"y": nchw(jax.jit(task.model_fn(params))(x, t, y))}


def test_the_network_of_an_imported_run_gives_the_numbers_of_the_reference(imported: Imported) -> None:
    found = numbers(imported)
    for name, ours in found.items():
        assert cases.relative_error(ours, imported.case.outputs[name]) < 1e-4, name


def test_export_gives_the_imported_tensors_back_bit_for_bit(imported: Imported) -> None:
    given, back = files.read(imported.path), exported(imported.config, imported.workdir)
    assert back.keys() == given.keys() == imported.case.params.keys()
    for name, value in imported.case.params.items():
        assert back[name].dtype == np.float32 and back[name].shape == value.shape
        assert back[name].tobytes() == value.tobytes(), name


def test_a_saved_run_says_where_it_came_from(imported: Imported) -> None:
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
    with pytest.raises(UserError) as refused:
        load(source, state, hints)
    said = str(refused.value)
    assert f"1 missing: {absent}" in said and "1 without place in this network: other.weight" in said
    assert f"1 of another shape: {misshapen} {shape} instead of {was}" in said and "\n" not in said


@pytest.fixture(scope="module")
def patch4() -> dict[str, np.ndarray]:
    """DiT's tensors with its table of positions, by the formula of the reference in float64."""
    frequencies = 10_000 ** (-np.arange(16) / 16)
    places = [np.outer(axis, frequencies) for axis in (np.tile(np.arange(4), 4), np.repeat(np.arange(4), 4))]
    table = np.concatenate([f(angles) for angles in places for f in (np.sin, np.cos)], axis=1)
    return golden("dit_patch4") | {"pos_embed": table[None].astype(np.float32)}


def test_dits_table_of_positions_tells_the_size_of_images_and_is_exported(
    patch4: dict[str, np.ndarray], tmp_path: pathlib.Path
) -> None:
    config, params = load("dit", patch4, HINTS["dit_patch4"][1])
    assert config["data"]["image_size"] == 16 and config["imported"]["constants"] == ["pos_embed"]
    back = exported(make_run(config, params, tmp_path), tmp_path)
    assert back.keys() == patch4.keys()
    np.testing.assert_allclose(back["pos_embed"], patch4["pos_embed"], atol=1e-6)


def test_a_table_of_positions_in_half_precision_is_taken_and_another_is_refused(patch4: dict[str, np.ndarray]) -> None:
    half = {name: value.astype(np.float16) for name, value in patch4.items()}
    assert load("dit", half, dict(num_heads=4))[0]["imported"]["constants"] == ["pos_embed"]
    with pytest.raises(UserError, match="^--checkpoint: pos_embed is not the fixed table"):
        load("dit", patch4 | {"pos_embed": patch4["pos_embed"][..., ::-1]}, dict(num_heads=4))
    with pytest.raises(UserError, match=r"pos_embed \(1, 16, 64\) instead of \(1, 64, 64\)"):
        load("dit", patch4, dict(num_heads=4, image_size=32))


def test_of_a_whole_system_the_network_is_imported_and_exported_under_its_prefix(tmp_path: pathlib.Path) -> None:
    prefix, own = "model.diffusion_model.", golden("mmdit_sd3")
    whole = {f"{prefix}{name}": value for name, value in own.items()}
    others = {"first_stage_model.decoder.conv_in.bias": np.zeros(3), "text_encoders.t5xxl.logit_scale": np.zeros(())}
    config, params = load("sd3", whole | others, {})
    assert config["imported"]["prefix"] == prefix
    back = exported(make_run(config, params, tmp_path), tmp_path)
    assert back.keys() == whole.keys()
    assert all(back[name].tobytes() == value.tobytes() for name, value in whole.items())


@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_weights_of_other_precisions_become_float32(kind: Any) -> None:
    own = {name: value.astype(kind) for name, value in golden("edm2_uncond").items()}
    tensors = {name: Tensor(value.shape, functools.partial(np.copy, value)) for name, value in own.items()}
    _, params = load("edm2", tensors, dict(channels_per_head=16))
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(params["network"]["out_gain"], own["unet.out_gain"].astype(np.float32))


def trained(config: Any, workdir: pathlib.Path) -> Any:
    """A run as training leaves it, with an average that is not its parameters."""
    config.data.num_classes = 3
    task = registry.build(tasks, "config.task", config.task, {"config": config})
    state = jax.jit(task.init)(jax.random.key(0))
    state = state.replace(step=jnp.int32(5), ema=jax.tree.map(lambda leaf: leaf + 0.25, state.params))
    checkpoints = Checkpoints(workdir / "checkpoints", keep=3)
    for step in (5, 9):
        checkpoints.save(state.replace(step=jnp.int32(step)), config.to_dict())
        checkpoints.wait()
        state = state.replace(ema=jax.tree.map(lambda leaf: leaf + 1, state.ema))
    checkpoints.close()
    return state


@pytest.fixture
def small() -> Any:
    """A DiT that the published network could be."""
    from configs import dit_rf

    config = dit_rf.get_config()
    config.model.update(dict(hidden_size=16, depth=1, num_heads=2, registers=0, qk_norm=None))
    return config


def test_a_trained_runs_average_is_exported_at_the_step_that_is_asked_for(small: Any, tmp_path: pathlib.Path) -> None:
    state = trained(small, tmp_path)
    (first, old), (last, new) = (export(small, Checkpoints(tmp_path / "checkpoints"), step) for step in (5, None))
    assert (first, last) == (5, 9) and "pos_embed" in new
    kernel = np.asarray(state.params["block_0"]["attention"]["out"]["kernel"])
    np.testing.assert_array_equal(old["blocks.0.attn.proj.weight"], (kernel + np.float32(0.25)).T)
    np.testing.assert_array_equal(new["blocks.0.attn.proj.weight"], (kernel + np.float32(0.25) + 1).T)
    with pytest.raises(UserError, match="^--step: no checkpoint of step 7; there are 9, 5$"):
        export(small, Checkpoints(tmp_path / "checkpoints"), 7)


def test_what_is_exported_can_be_imported_as_the_same_network(small: Any, tmp_path: pathlib.Path) -> None:
    trained(small, tmp_path)
    state = exported(small, tmp_path)
    config, params = load("dit", state, dict(num_heads=2))
    assert config["data"]["num_classes"] == 3 and config["data"]["image_size"] == 8
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), params)
    _, own = Checkpoints(tmp_path / "checkpoints").restore_ema(like)
    jax.tree.map(np.testing.assert_array_equal, params, own)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        (dict(registers=2), "^registers: the published network has no such parameter$"),
        (dict(positions="rotary"), "^config.model.positions: 'rotary'"),
        (dict(name="unknown"), "^--workdir: nobody published a unknown$"),
    ],
)
def test_a_network_that_nobody_published_is_not_exported(
    changes: dict[str, Any], named: str, small: Any, tmp_path: pathlib.Path
) -> None:
    known = "name" not in changes
    small.model.update(changes)
    if known:
        trained(small, tmp_path)
    with pytest.raises(UserError, match=named):
        export(small, Checkpoints(tmp_path / "checkpoints"))


def test_a_run_without_a_checkpoint_is_not_exported(small: Any, tmp_path: pathlib.Path) -> None:
    small.data.num_classes = 3
    with pytest.raises(UserError, match="^--workdir: no usable checkpoint in"):
        export(small, Checkpoints(tmp_path / "checkpoints"))
