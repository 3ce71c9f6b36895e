"""The task draws what it is asked for with the average's weights, and knows before a run begins what does not fit."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from archirf_jax.data.pipeline import Batch
from archirf_jax.errors import UserError
from archirf_jax.tasks import edits
from archirf_jax.tasks.diffusion import Diffusion, class_grid
from archirf_jax.training.state import TrainState, purpose_key
from configs import dit_ddpm, dit_edm, dit_rf, edm2_edm

SMALL = {
    "model.hidden_size": 16,
    "model.depth": 0,
    "data.num_classes": 3,
    "schedule.warmup_steps": 0,
    "sample.steps": 3,
    "sample.per_class": 2,
}
BATCH = Batch(jax.random.normal(jax.random.key(0), (8, 8, 8, 1)), jnp.arange(8, dtype=jnp.int32) % 3)


def config(file: Any = dit_rf, **changes: Any) -> Any:
    made = file.get_config()
    made.update_from_flattened_dict(SMALL | {name.replace("__", "."): value for name, value in changes.items()})
    return made


def noisy(task: Diffusion) -> TrainState:
    """A state whose network does not give zeros, as a fresh one does."""
    state = jax.jit(task.init)(purpose_key(0, "init"))
    return state.replace(ema=jax.tree.map(lambda p: p + 0.05, state.ema))


def complaint(file: Any = dit_rf, **changes: Any) -> str:
    with pytest.raises(UserError) as refused:
        Diffusion(config(file, **changes))
    assert "\n" not in str(refused.value)
    return str(refused.value)


@pytest.fixture(scope="module")
def task() -> Diffusion:
    return Diffusion(config())


@pytest.fixture(scope="module")
def state(task: Diffusion) -> TrainState:
    return noisy(task)


def test_the_preview_draws_with_the_average_and_the_same_noise_each_time(task: Diffusion, state: TrainState) -> None:
    key = purpose_key(0, "preview")
    first = task.preview(state, key)
    assert first.shape == (3, 2, 8, 8, 1) and first.dtype == np.uint8
    other = state.replace(params=jax.tree.map(lambda p: p + 1, state.params))
    np.testing.assert_array_equal(first, task.preview(other, key))
    frames = task.animate(state, key)
    assert frames.shape == (4, 3, 2, 8, 8, 1)
    np.testing.assert_array_equal(frames[-1], first)


def test_a_grid_shows_no_more_classes_than_asked(state: TrainState) -> None:
    fewer = Diffusion(config(sample__classes=2))
    assert fewer.preview(state, purpose_key(0, "preview")).shape[0] == 2


def test_a_pictures_key_depends_on_its_label_and_number_alone() -> None:
    labels, keys = class_grid(jax.random.key(0), [0, 1, 2], 3)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert len({tuple(row) for row in jax.random.key_data(keys).tolist()}) == 9
    fewer = class_grid(jax.random.key(0), [2], 2)[1]
    np.testing.assert_array_equal(jax.random.key_data(fewer), jax.random.key_data(keys[6:8]))


def test_the_sampler_obeys_its_choice_and_refuses_a_wrong_one(task: Diffusion, state: TrainState) -> None:
    labels, keys = class_grid(jax.random.key(0), [0, 1], 2)
    choice = dataclasses.replace(task.choice, guidance_scale=1.0)
    plain = task.sampler(choice)(state.ema, keys, labels)
    assert plain.shape == (4, 8, 8, 1)
    assert np.any(plain != task.sampler(dataclasses.replace(choice, guidance_scale=3.0))(state.ema, keys, labels))
    longer = dataclasses.replace(choice, steps=5)
    assert np.any(plain != task.sampler(longer)(state.ema, keys, labels))
    assert task.sampler(longer, stride=2)(state.ema, keys, labels).shape[0] == 4
    for wrong in ({"solver": "eular"}, {"guidance_scale": -1.0}, {"steps": 0}):
        with pytest.raises(UserError, match=next(iter(wrong))):
            task.sampler(dataclasses.replace(choice, **wrong))


@pytest.mark.parametrize("change", [{"model__patch_size": 3}, {"model__num_heads": 5}, {"model__dtype": "float8"}])
def test_a_network_that_does_not_fit_is_refused_when_the_task_is_made(change: dict[str, Any]) -> None:
    assert "config.model." in complaint(**change)


@pytest.mark.parametrize(
    ("file", "learned", "gives", "needs"), [(dit_rf, True, 2, 1), (dit_ddpm, False, 1, 2), (dit_edm, True, 2, 1)]
)
def test_a_learned_variance_where_the_process_has_none_is_refused_and_the_other_way_round(
    file: Any, learned: bool, gives: int, needs: int
) -> None:
    said = complaint(file, model__learn_sigma=learned)
    assert said.startswith("config.model.learn_sigma: ") and f"set it to {not learned}" in said
    assert f"{gives} channels for images of 1" in said and f"needs {needs};" in said


WRONG = {
    "solver": ({"sample__solver": "eular"}, ["did you mean 'euler'"]),
    "grid": ({"sample__grid": "unifrom"}, ["did you mean 'uniform'", "karras"]),
    "steps": ({"sample__grid": "archirf", "sample__solver": "euler", "sample__steps": 1}, ["at least 2"]),
    "shift": ({"sample__shift": 3.0}, ["'shifted'"]),
    "eta": ({"sample__eta": 0.5}, ["ddim"]),
    "churn": ({"sample__churn": -1.0}, ["-1.0"]),
    "guidance": ({"sample__guidance": "free"}, ["classifier_free"]),
    "guidance_rescale": ({"sample__guidance_rescale": 2.0}, ["2.0"]),
    "threshold": ({"sample__threshold": "clip"}, ["static"]),
    "guidance_interval": ({"sample__guidance_interval": (0.8, 0.2)}, ["0.8,0.2"]),
}


@pytest.mark.parametrize("field", WRONG)
def test_a_wrong_way_to_sample_is_refused_when_the_task_is_made(field: str) -> None:
    changes, expected = WRONG[field]
    said = complaint(**changes)
    assert said.startswith(f"config.sample.{field}: ") and all(word in said for word in expected), said


def test_a_solver_that_does_not_fit_its_grid_or_process_is_refused_when_the_task_is_made() -> None:
    said = complaint(sample__solver="edm", sample__grid="uniform")
    assert said.startswith("config.sample.solver: edm") and "'karras'" in said
    said = complaint(sample__grid="trailing")
    assert said.startswith("config.sample.grid: 'trailing'") and "ddpm" in said and "karras" in said
    assert "--weak_workdir" in complaint(sample__guidance="autoguidance", sample__guidance_scale=2.0)


@pytest.mark.parametrize("interval", [(0.2,), (0.1, 0.2, 0.3), ("a", "b"), ()])
def test_an_interval_that_is_no_pair_of_times_is_refused(interval: Any) -> None:
    said = complaint(sample__guidance_interval=interval)
    assert said.startswith("config.sample.guidance_interval: ") and "such as (0.2, 0.8)" in said


def test_a_configuration_that_was_saved_before_there_was_a_choice_of_grids_still_builds() -> None:
    saved = json.loads(json.dumps(config(sample__shift=1.0).to_dict()))
    for name in ("path", "prediction", "mode_scale", "weigh_as"):
        del saved["process"][name]
    kept = ("every_steps", "solver", "steps", "shift", "guidance_scale", "classes", "per_class")
    saved["sample"] = {name: saved["sample"][name] for name in kept} | {"shift": 3.0}
    old = Diffusion(ml_collections.ConfigDict(saved))
    assert old.process == Diffusion(config()).process
    assert (old.choice.grid, old.choice.shift) == ("shifted", 3.0)


def test_a_silent_uncertainty_changes_no_loss_and_every_step_moves_it_on_unit_weights() -> None:
    plain, uncertain = (Diffusion(config(dit_edm, process__uncertainty=flag)) for flag in (False, True))
    states = [jax.jit(each.init)(purpose_key(0, "init")) for each in (plain, uncertain)]
    head = states[1].params["uncertainty"]
    assert "uncertainty" not in states[0].params and np.all(np.asarray(head["kernel"]) != 0)
    key = purpose_key(0, "step")
    first = jax.jit(lambda state: plain.step(state, BATCH, key)[1]["loss"][0])(states[0])
    step = jax.jit(lambda state: uncertain.step(state, BATCH, key))
    silent = states[1].params | {"uncertainty": jax.tree.map(np.zeros_like, head)}
    np.testing.assert_allclose(step(states[1].replace(params=silent))[1]["loss"][0], first, rtol=1e-6)
    after, metrics = step(states[1])
    assert abs(metrics["loss"][0] - first) > 1e-3
    moved = np.abs(
        after.params["uncertainty"]["kernel"] - uncertain.constrained(states[1].params)["uncertainty"]["kernel"]
    )
    assert np.all(moved > 0) and np.max(moved) < 0.1
    features = [state.params["uncertainty_features"] for state in (after, states[1])]
    assert jax.tree.all(jax.tree.map(np.array_equal, *features))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"optimizer__name": "sgd"}, "config.optimizer.name: 'sgd'"),
        ({"guard__patience": 0}, "config.guard.patience: 0"),
    ],
)
def test_how_it_is_trained_matters_to_who_trains_alone(change: dict[str, Any], said: str, state: TrainState) -> None:
    made = Diffusion(config(**change))
    assert made.preview(state, purpose_key(0, "preview")).shape == (3, 2, 8, 8, 1)
    with pytest.raises(UserError, match=f"^{said}"):
        jax.eval_shape(made.init, jax.random.key(0))


def test_weights_that_are_held_at_a_size_are_not_averaged_by_a_schedule_free_optimizer() -> None:
    changed = edm2_edm.get_config()
    changed.update_from_flattened_dict({"data.num_classes": 3, "optimizer.name": "schedule_free_adamw"})
    made = Diffusion(changed)
    with pytest.raises(UserError, match="config.optimizer.name: schedule_free_adamw .*take adam"):
        jax.eval_shape(made.init, jax.random.key(0))


def test_guidance_by_a_label_that_was_never_trained_is_refused() -> None:
    said = complaint(process__condition_dropout=0.0)
    assert said.startswith("config.sample.guidance_scale: 1.5 ") and "config.process.condition_dropout is 0" in said
    unguided = Diffusion(config(process__condition_dropout=0.0, sample__guidance_scale=1.0))
    with pytest.raises(UserError, match="guidance_scale: 3 .*condition_dropout is 0"):
        unguided.sampler(dataclasses.replace(unguided.choice, guidance="adaptive_projected", guidance_scale=3.0))


def test_pictures_that_are_no_numbers_are_not_handed_out_as_black(task: Diffusion, state: TrainState) -> None:
    broken = jax.tree.map(lambda p: p * np.nan, state.ema)
    for params in (state.ema, broken):
        sheet = edits.Sheet(task, params, task.choice, purpose_key(0, "sample"), [0, 2], 2)
        if params is broken:
            with pytest.raises(UserError, match="nan or infinity; try a lower --guidance_scale"):
                edits.plain(sheet)
        else:
            assert edits.plain(sheet).shape == (2, 2, 8, 8, 1)
