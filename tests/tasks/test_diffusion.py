"""The task draws what it is asked for, with the average's weights and keys that belong to pictures, not to batches."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.tasks.diffusion import Diffusion, class_grid
from archirf_jax.training.state import TrainState, purpose_key
from configs import dit_rf


def config(**changes: Any) -> Any:
    made = dit_rf.get_config()
    small = {"model.hidden_size": 16, "model.depth": 1, "data.num_classes": 3, "sample.steps": 3, "sample.per_class": 2}
    made.update_from_flattened_dict(small | {name.replace("__", "."): value for name, value in changes.items()})
    return made


def noisy(task: Diffusion) -> TrainState:
    """A state whose network does not give zeros, as a fresh one does."""
    state = task.init(purpose_key(0, "init"))
    return state.replace(ema=jax.tree.map(lambda p: p + 0.05, state.ema))


def test_the_preview_draws_with_the_average_and_the_same_noise_each_time() -> None:
    task = Diffusion(config())
    state, key = noisy(task), purpose_key(0, "preview")
    first = task.preview(state, key)
    assert first.shape == (3, 2, 8, 8, 1) and first.dtype == np.uint8
    other = state.replace(params=jax.tree.map(lambda p: p + 1, state.params))
    np.testing.assert_array_equal(first, task.preview(other, key))
    frames = task.animate(state, key)
    assert frames.shape == (4, 3, 2, 8, 8, 1)
    np.testing.assert_array_equal(frames[-1], first)


def test_a_grid_shows_no_more_classes_than_asked_or_present() -> None:
    for asked, shown in ((2, 2), (10, 3)):
        task = Diffusion(config(sample__classes=asked))
        assert task.preview(noisy(task), purpose_key(0, "preview")).shape[0] == shown


def test_a_pictures_key_depends_on_its_label_and_number_alone() -> None:
    labels, keys = class_grid(jax.random.key(0), [0, 1, 2], 3)
    assert labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert len({tuple(row) for row in jax.random.key_data(keys).tolist()}) == 9
    fewer = class_grid(jax.random.key(0), [2], 2)[1]
    np.testing.assert_array_equal(jax.random.key_data(fewer), jax.random.key_data(keys[6:8]))


def test_the_sampler_obeys_its_arguments_and_refuses_wrong_ones() -> None:
    task = Diffusion(config())
    labels, keys = class_grid(jax.random.key(0), [0, 1], 2)
    params = noisy(task).ema
    plain = task.sampler(guidance_scale=1.0)(params, keys, labels)
    assert plain.shape == (4, 8, 8, 1)
    assert np.any(plain != task.sampler(guidance_scale=3.0)(params, keys, labels))
    assert np.any(plain != task.sampler(guidance_scale=1.0, steps=5)(params, keys, labels))
    assert task.sampler(steps=5, trajectory=True)(params, keys, labels).shape[0] == 6
    for wrong in ({"solver": "eular"}, {"guidance_scale": -1.0}, {"steps": 0}):
        with pytest.raises(UserError):
            task.sampler(**wrong)


def test_a_network_that_does_not_fit_is_refused_when_the_task_is_made() -> None:
    for change in ({"model__patch_size": 3}, {"model__num_heads": 5}, {"model__dtype": "float8"}):
        with pytest.raises(UserError, match="model"):
            Diffusion(config(**change))
