"""Laws of training with a discriminator that sees by a frozen network, and with augmented images."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.tasks.building import make_task
from configs import autoencoder
from tests.tasks.settings import config, moved, run_of
from tests.tasks.test_autoencoder import BATCH, JUDGED, KEY, KL, SMALL, drawn_state

PROJECTED = {
    "objective.adversarial_weight": 0.5,
    "objective.adversarial_loss": "logistic",
    "objective.discriminator": {"name": "projected_discriminator", "width": 4},
    "objective.augment": ("color", "translation", "cutout"),
    "objective.r1_weight": 0.1,
    "frozen.features": "runs/features",
}


@functools.cache
def features() -> Any:
    task: Any = make_task(config(autoencoder, KL, SMALL))
    return run_of(task, moved(jax.eval_shape(task.init_params, jax.random.key(0), {}), scale=0.3))


def task_of(changes: dict[str, Any]) -> Any:
    return make_task(config(autoencoder, changes, SMALL), {"features": features()})


@functools.cache
def frozen() -> dict[str, Any]:
    return {"features": features().params}


@pytest.mark.slow
def test_heads_and_autoencoder_move_and_nothing_that_is_frozen_does() -> None:
    task = task_of(PROJECTED)
    step = jax.jit(task.step)
    state = after = drawn_state(task, frozen())
    for i in range(2):
        after, metrics = step(after, frozen(), BATCH, jax.random.fold_in(KEY, i))
    assert state.networks.keys() == {"model", "discriminator"}
    pairs = jax.tree.map(
        lambda a, b: bool(np.any(a != b)), *(x.networks["discriminator"].params for x in (state, after))
    )
    for path, changed in jax.tree_util.tree_leaves_with_path(pairs):
        assert changed != ("frozen_" in jax.tree_util.keystr(path)), path
    assert all(np.isfinite(pair).all() for pair in metrics.values()) and float(metrics["discriminator/r1"][0]) > 0


def test_the_autoencoder_learns_by_the_frozen_network_alone() -> None:
    alone = {f"objective.{name}_weight": 0.0 for name in ("l1", "std", "mean", "kl")}
    task = task_of(PROJECTED | alone | {"objective.adaptive": False})
    state = drawn_state(task, frozen())
    drawn, losses = task.losses(state, frozen(), BATCH, KEY, "model")
    params = state.networks["model"].params
    slopes = jax.jit(jax.grad(lambda params: jnp.mean(losses(params, drawn, 0)[0])))(params)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(slopes["model"]["decoder"]))


def test_real_and_made_images_are_augmented_each_by_the_steps_key_and_in_training_alone() -> None:
    changes = JUDGED | {"objective.augment": ("translation",), "objective.adversarial_start": 0}
    task: Any = make_task(config(autoencoder, changes, SMALL))
    state = drawn_state(task, {})
    params = state.networks["discriminator"].params

    @functools.partial(jax.jit, static_argnames="train")
    def loss(key: jax.Array, train: bool) -> Any:
        drawn, losses = task.losses(state, {}, BATCH, key, "discriminator", train=train)
        return losses(params, drawn, 0)[1]

    first, second = (loss(jax.random.key(i), True) for i in range(2))
    assert all(float(first[name][0]) != float(second[name][0]) for name in ("real", "fake"))
    seen = [loss(jax.random.key(i), False)["real"] for i in range(2)]
    assert np.array_equal(*seen) and not np.array_equal(seen[0], first["real"])
    chance = np.asarray(task.draw(BATCH["image"], KEY).augment)
    assert len(np.unique(chance)) == chance.size  # every image has its own, real and made ones too


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        (PROJECTED | {"objective.augment": ("flip",)}, "objective.augment"),
        ({"objective.augment": ("color",)}, "objective.augment"),
    ],
)
def test_augmentations_that_do_not_fit_are_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError) as caught:
        task_of(changes)
    assert caught.value.field == field


def test_a_network_without_features_of_such_images_is_refused() -> None:
    colour: Any = make_task(config(autoencoder, KL | {"data.channels": 3}, SMALL))
    without = run_of(make_task(config(changes={"data.num_classes": 3})), {})
    for runs, field in (
        ({}, "objective.discriminator.name"),
        ({"features": without}, "frozen.features"),
        ({"features": run_of(colour, {})}, "frozen.features"),
    ):
        with pytest.raises(UserError) as caught:
            make_task(config(autoencoder, PROJECTED, SMALL), runs)
        assert caught.value.field == field
