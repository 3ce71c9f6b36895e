"""The task trains what its objective asks for, draws with the average's weights, and keeps frozen runs as they are."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.contracts import Models, Setting, TrainState
from archirf_jax.errors import UserError
from archirf_jax.tasks.building import make_task
from archirf_jax.tasks.diffusion import MODEL, Diffusion
from archirf_jax.tasks.drawing import FRAMES, class_grid
from archirf_jax.tasks.network import NetworkAlone
from archirf_jax.training.state import purpose_key
from configs import adm_ddpm, dit_ddpm, dit_edm, dit_rf, edm2_edm
from tests.tasks.settings import BATCH, WORDS, config, moved, noisy, run_of, text_config

KEY = purpose_key(0, "preview")
DROPPING = {"objective.condition_dropout": 0.5}  # so that the null label is asked for too
# Of EDM2's network, as small as it can be.
EDM2 = {
    **{"data.num_classes": 3, "model.channel_mult": (1,), "model.attention_levels": ()},
    **{"objective.channels": 16},
}


def refused(call: Any, *arguments: Any) -> str | None:
    """The field that a refusal names."""
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return caught.value.field


def begun(task: Diffusion, frozen: Any = None) -> TrainState:
    """A state whose network does not answer zero."""
    return TrainState(jnp.int32(0), {MODEL: task.updates[MODEL].init(noisy(task, frozen), task.objective.init())})


@pytest.fixture(scope="module")
def task() -> Diffusion:
    return Diffusion(config(changes=DROPPING), {})


@pytest.fixture(scope="module")
def state(task: Diffusion) -> TrainState:
    return begun(task)


def test_a_preview_draws_with_the_average_and_the_same_noise_each_time(task: Diffusion, state: TrainState) -> None:
    first = task.preview(state, {}, KEY)
    assert first is not None and first.shape == (3, 2, 8, 8, 1) and first.dtype == np.uint8
    network = state.networks[MODEL]
    other = state.replace(networks={MODEL: network.replace(params=moved(network.params, 1))})
    np.testing.assert_array_equal(first, task.preview(other, {}, KEY))
    frames = task.preview(state, {}, KEY, stride=1)
    assert frames is not None and frames.shape == (4, 3, 2, 8, 8, 1)
    np.testing.assert_array_equal(frames[-1], first)


@pytest.mark.parametrize("steps", [FRAMES, 2 * FRAMES - 2])
def test_of_a_long_way_a_preview_shows_its_ends_and_some_states_between(steps: int, state: TrainState) -> None:
    made = Diffusion(config(changes={"sample.classes": 1, "sample.steps": steps}), {})
    image, frames = (made.preview(state, {}, KEY, stride) for stride in (0, 1))
    assert image is not None and frames is not None and len(frames) == 1 + (FRAMES if steps == FRAMES else FRAMES - 1)
    np.testing.assert_array_equal(frames[-1], image)


def test_a_preview_shows_no_more_classes_than_asked(state: TrainState) -> None:
    found = Diffusion(config(changes={"sample.classes": 2}), {}).preview(state, {}, KEY)
    assert found is not None and found.shape[0] == 2


def test_an_images_key_depends_on_its_label_and_number_alone() -> None:
    labels, keys = class_grid(jax.random.key(0), [0, 1, 2], 3)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert len({tuple(row) for row in jax.random.key_data(keys).tolist()}) == 9
    fewer = class_grid(jax.random.key(0), [2], 2)[1]
    np.testing.assert_array_equal(jax.random.key_data(fewer), jax.random.key_data(keys[6:8]))


def test_the_sampler_obeys_its_configuration(task: Diffusion, state: TrainState) -> None:
    labels, keys = class_grid(jax.random.key(0), [0, 1], 2)
    params, plain = state.networks[MODEL].params, task.sampling.replace(guidance_scale=1.0)

    def drawn(stride: int = 0, **changes: Any) -> Any:
        return task.sampler(plain.replace(**changes), stride)(params, {}, {"label": labels}, keys)

    assert drawn().shape == (4, 8, 8, 1)
    assert np.any(drawn() != drawn(guidance_scale=3.0)) and np.any(drawn() != drawn(steps=5))
    assert drawn(stride=2, steps=5).shape[0] == 4
    assert task.sampler(plain) is task.sampler(plain.replace())


@pytest.mark.parametrize(
    ("file", "changes", "field"),
    [
        (dit_rf, {"model.patch_size": 3}, "model.patch_size"),
        (dit_rf, {"model.num_heads": 5}, "model.num_heads"),
        (dit_rf, {"model.mlp_ratio": 1e30}, "model.mlp_ratio"),
        (dit_rf, {"model.hidden_size": 10**9}, "model.hidden_size"),
        (dit_rf, {"model.depth": 1001}, "model.depth"),
        (adm_ddpm, {"model.channel_mult": (1, 10**12)}, "model.channel_mult"),
        (dit_rf, {"model.dtype": "float8"}, "model.dtype"),
        (dit_rf, {"model.learn_sigma": True}, "model"),
        (dit_edm, {"model.learn_sigma": True}, "model"),
        (dit_ddpm, {"process.variance": "learned_range", "model.learn_sigma": False}, "model"),
        (dit_rf, {"process.name": "ddpn"}, "process.name"),
        (dit_rf, {"objective.name": "regresion"}, "objective.name"),
        (dit_rf, {"objective.name": "ddpm_hybrid"}, None),
        (dit_rf, {"conditioners.label.name": "labels"}, "conditioners.label.name"),
        (dit_rf, {"first_stage.name": "images"}, "first_stage.name"),
        (dit_rf, {"sample.solver": {"name": "eular"}}, "sample.solver.name"),
        (dit_rf, {"sample.guidance.interval": (0.8, 0.2)}, "sample.guidance.interval"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_step_is_made(file: Any, changes: dict[str, Any], field: Any) -> None:
    def traced() -> None:
        made = Diffusion(config(file, changes), {})
        state = jax.eval_shape(made.init, jax.random.key(0), {})
        jax.eval_shape(made.step, state, {}, BATCH, jax.random.key(0))

    found = refused(traced)
    assert field is None or found == field


def test_how_it_is_trained_matters_to_training_alone(state: TrainState) -> None:
    for changes, field in (
        ({"optimizer.name": "sgd"}, "optimizer.name"),
        ({"guard.patience": 0}, "guard.patience"),
    ):
        made = Diffusion(config(changes=changes), {})
        assert made.preview(state, {}, KEY) is not None
        assert refused(jax.eval_shape, made.init, jax.random.key(0), {}) == field


def test_weights_that_are_held_at_a_size_are_not_averaged_by_a_schedule_free_optimizer() -> None:
    fields = {"optimizer.name": "schedule_free_adamw"}
    made = Diffusion(config(edm2_edm, fields, EDM2), {})
    assert refused(jax.eval_shape, made.init, jax.random.key(0), {}) == "optimizer.name"


@pytest.mark.parametrize(
    "changes", [{"objective.condition_dropout": 0.0}, {"objective.condition_dropout": {"label": 0.0}}]
)
def test_guidance_by_conditions_that_were_never_dropped_is_refused(changes: dict[str, Any]) -> None:
    made = Diffusion(config(changes=changes), {})
    assert refused(made.check_guidance, made.sampling) == "sample.guidance.scale"
    assert refused(made.sampler, made.sampling.replace(guidance="adaptive_projected")) == "sample.guidance.scale"
    made.check_guidance(made.sampling.replace(guidance_scale=1.0))
    made.check_guidance(made.sampling.replace(guidance="autoguidance"))  # it asks for no images without condition


def test_guidance_outside_a_network_that_learned_it_is_refused(task: Diffusion, monkeypatch: Any) -> None:
    task.check_guidance(task.sampling)
    monkeypatch.setattr(type(task.objective), "guidance", "inside")
    assert refused(task.check_guidance, task.sampling) == "sample.guidance.scale"


def moves_what_is_trained(before: TrainState, after: TrainState) -> None:
    pairs = (jax.tree_util.tree_leaves_with_path(each.networks[MODEL].params) for each in (before, after))
    for (path, old), (_, new) in zip(*pairs, strict=True):
        frozen = any(part.key.startswith("frozen_") for part in path)
        assert np.array_equal(old, new) == frozen, jax.tree_util.keystr(path)


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_step_moves_every_parameter_and_its_loss_is_the_objectives_on_the_drawn_batch(
    state: TrainState, accumulation: int
) -> None:
    task = Diffusion(config(changes=DROPPING | {"accumulation": accumulation}), {})
    params, key = state.networks[MODEL].params, purpose_key(0, "step")

    @jax.jit
    def expected(image: Any, label: Any) -> Any:
        setting = Setting(task.process, {"label": jnp.int32(3)}, state.step)
        drawn = task.objective.draw(key, setting, image, {"label": label})
        return task.objective.losses(Models(task.model_fn(params)), setting, drawn)[:2]

    losses, reported = expected(BATCH["image"], BATCH["label"])
    after, metrics = jax.jit(task.step)(state, {}, BATCH, key)
    assert int(after.step) == 1
    moves_what_is_trained(state, after)
    np.testing.assert_allclose(metrics["loss"][0] / metrics["loss"][1], np.mean(losses), rtol=1e-5)
    for name, (total, weight) in reported.items():
        if name.startswith("loss_t"):
            np.testing.assert_allclose(metrics[name][0] * weight, total * metrics[name][1], rtol=1e-4, atol=1e-6)


def test_a_step_moves_every_parameter_that_is_trained() -> None:
    """Of a network with constants and a head that learns the expected loss, too."""
    task = Diffusion(config(edm2_edm, DROPPING, EDM2), {})
    state = begun(task)
    moves_what_is_trained(state, jax.jit(task.step)(state, {}, BATCH, jax.random.key(2))[0])


def test_a_silent_uncertainty_changes_no_loss(state: TrainState) -> None:
    """exp(0) and 0: the loss of a head that answers zero is the plain one."""
    plain = Diffusion(config(dit_edm), {})
    objective = plain.config.objective.to_dict() | {"name": "uncertainty", "channels": 16}
    uncertain = Diffusion(config(dit_edm, {"objective": objective}), {})
    params = noisy(uncertain)[MODEL]
    silent = params | {"uncertainty": jax.tree.map(np.zeros_like, params["uncertainty"])}

    def loss(task: Diffusion, params: Any) -> Any:
        drawn, losses = task.losses(state, {}, BATCH, KEY, MODEL, train=False)
        return losses({MODEL: params}, drawn, 0)[0]

    ways = (uncertain, params), (uncertain, silent), (plain, params["network"])
    loud, quiet, expected = jax.jit(lambda: [loss(*way) for way in ways])()
    np.testing.assert_allclose(quiet, expected, rtol=1e-5)
    assert np.all(np.abs(loud - quiet) > 1e-4)


@pytest.fixture(scope="module")
def taught(task: Diffusion, state: TrainState) -> tuple[Diffusion, Any]:
    """(a student of a frozen teacher, the parameters of the frozen runs)."""
    teacher = moved(state.networks[MODEL].params, 3)
    fields = {"objective": {"name": "tests.extensions.distillation"}, "frozen.teacher": "runs/teacher"}
    return Diffusion(config(changes=fields), {"teacher": run_of(task, teacher)}), {"teacher": teacher}


def test_a_frozen_teacher_is_asked_and_not_trained(taught: tuple[Diffusion, Any], state: TrainState) -> None:
    student, frozen = taught
    shapes = jax.eval_shape(student.init, KEY, frozen)
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, state)
    assert list(state.networks) == [MODEL] and list(state.networks[MODEL].params) == [MODEL]
    step = jax.jit(student.step)
    after, metrics = step(state, frozen, BATCH, jax.random.key(1))
    for old, new in zip(*(jax.tree.leaves(each.networks[MODEL].params) for each in (state, after)), strict=True):
        assert not np.array_equal(old, new)
    other, others = step(state, {"teacher": moved(frozen["teacher"], 5)}, BATCH, jax.random.key(1))
    assert metrics["loss"][0] != others["loss"][0]
    assert jax.tree.structure(other) == jax.tree.structure(state)
    # A student with its teacher's weights has nothing to learn.
    same = state.networks[MODEL].replace(params=frozen["teacher"])
    _, metrics = step(state.replace(networks={MODEL: same}), frozen, BATCH, jax.random.key(1))
    assert abs(metrics["loss"][0]) < 1e-9


def test_gradients_pass_through_a_teachers_inputs(taught: tuple[Diffusion, Any]) -> None:
    student, frozen = taught
    teacher: Any = student.teacher(frozen)
    condition = {"label": BATCH["label"]}

    def answer(x: jax.Array) -> jax.Array:
        return jnp.sum(teacher(x, jnp.float32(0.5), condition, teacher.init(x))[0].x0 ** 2)

    slopes = jax.jit(jax.grad(answer))(BATCH["image"])
    assert np.all(np.max(np.abs(slopes), axis=(1, 2, 3)) > 0)


@pytest.fixture(scope="module")
def encoder() -> tuple[Any, Any]:
    """(the run of a frozen text encoder, its parameters)."""
    made = config(changes={"task": "network", "model": {"name": "tests.extensions.text_encoder"}})
    alone: Any = make_task(made)
    ids, mask = WORDS["ids"], WORDS["mask"]
    params = {MODEL: alone.model.init(jax.random.key(4), ids, mask)["params"]}
    return run_of(alone, params), params


@pytest.fixture(scope="module")
def reading(captioned: tuple[Diffusion, Any]) -> TrainState:
    return begun(*captioned)


@pytest.fixture(scope="module")
def captioned(encoder: tuple[Any, Any]) -> tuple[Diffusion, Any]:
    return Diffusion(text_config(), {"encoder": encoder[0]}), {"encoder": encoder[1]}


def test_a_network_alone_is_not_trained(encoder: tuple[Any, Any]) -> None:
    alone = encoder[0].task
    assert isinstance(alone, NetworkAlone) and not alone.updates
    assert alone.preview(None, {}, KEY) is None
    assert refused(alone.init, KEY, {}) == "task"
    assert refused(alone.losses, None, {}, {}, KEY, MODEL) == "task"
    assert refused(alone.step, None, {}, {}, KEY) == "task"


def test_conditions_are_made_by_the_frozen_network(
    captioned: tuple[Diffusion, Any], encoder: tuple[Any, Any], reading: TrainState
) -> None:
    task, frozen = captioned

    @jax.jit
    def found(frozen: Any) -> Any:
        drawn, losses = task.losses(reading, frozen, WORDS, KEY, MODEL)
        tokens = encoder[0].task.model.apply({"params": frozen["encoder"][MODEL]}, WORDS["ids"], WORDS["mask"])
        return task.encoded(frozen, WORDS, KEY), tokens, losses(reading.networks[MODEL].params, drawn, 0)[0]

    (x0, condition), tokens, losses = found(frozen)
    np.testing.assert_array_equal(x0, WORDS["image"])
    np.testing.assert_allclose(condition["tokens"], tokens, atol=1e-5)
    other = found(jax.tree.map(lambda leaf: leaf * 2, frozen))[-1]
    assert np.all(np.isfinite(losses)) and np.any(losses != other)
    after, _ = jax.eval_shape(task.step, reading, frozen, WORDS, KEY)
    assert list(after.networks) == [MODEL]


def test_what_a_network_needs_and_what_may_be_dropped_follow_from_its_conditioners(
    task: Diffusion, captioned: tuple[Diffusion, Any]
) -> None:
    assert task.needs == task.null_names == {"label"} and set(task.condition_shapes) == {"label"}
    texts = captioned[0]
    assert {"ids", "mask", "image"} <= texts.needs and "label" not in texts.needs
    assert texts.null_names == {"tokens", "mask"}
    assert {name: shape.shape[1:] for name, shape in texts.condition_shapes.items()} == {
        **{"tokens": (4, 16), "mask": (4,)},
        **{"low_res": (4, 4, 1), "noise_level": ()},
    }
    assert (task.shape, texts.shape) == ((8, 8, 1), (8, 8, 1))


def test_a_batch_encoded_in_parts_is_the_batch_encoded_at_once(
    captioned: tuple[Diffusion, Any], encoder: tuple[Any, Any]
) -> None:
    """Keys are an example's own, so noise in conditions does not depend on the parts either."""
    once, frozen = captioned
    divided = Diffusion(text_config(accumulation=4), {"encoder": encoder[0]})
    whole, found = (jax.jit(each.encoded)(frozen, WORDS, KEY) for each in (once, divided))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), whole, found)
    levels = np.asarray(whole[1]["noise_level"])
    assert len(np.unique(levels)) == 8


def test_conditions_that_a_batch_holds_are_taken_as_given(captioned: tuple[Diffusion, Any]) -> None:
    task, frozen = captioned
    tokens = jnp.ones((8, 4, 16))
    low_res = {"low_res": jnp.zeros((8, 4, 4, 1)), "noise_level": jnp.zeros(8)}
    _, condition = jax.jit(task.encoded)(frozen, WORDS | low_res | {"tokens": tokens}, KEY)
    np.testing.assert_array_equal(condition["tokens"], tokens)
    np.testing.assert_array_equal(condition["mask"], WORDS["mask"])
    np.testing.assert_array_equal(condition["noise_level"], 0)
    assert np.max(np.abs(condition["low_res"])) < 0.01  # no noise at level 0


def test_a_preview_of_texts_takes_its_conditions_from_examples(
    captioned: tuple[Diffusion, Any], reading: TrainState
) -> None:
    (task, frozen), state = captioned, reading
    assert task.preview(state, frozen, KEY) is None
    task.examples = {name: leaf[:4] for name, leaf in WORDS.items()}
    try:
        first = task.preview(state, frozen, KEY)
        assert first is not None and first.shape == (3, 2, 8, 8, 1)
        task.examples = task.examples | {"ids": (WORDS["ids"][:4] + 5) % 13}
        assert np.any(first != task.preview(state, frozen, KEY))
    finally:
        task.examples = None
