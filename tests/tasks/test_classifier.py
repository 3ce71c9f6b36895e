"""The classifier's task: it learns labels through noise, says probabilities, and its gradient is theirs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.data.pipeline import Batch
from archirf_jax.errors import UserError
from archirf_jax.samplers.denoisers import classifier_gradient
from archirf_jax.tasks.classifier import FRAMES, Classifier
from archirf_jax.training.state import TrainState, purpose_key
from configs import adm_classifier, dit_edm, dit_rf

SMALL = {
    "model.channel_mult": (1, 1),
    "model.num_head_channels": 16,
    "data.num_classes": 3,
    "schedule.warmup_steps": 0,
    "schedule.name": "constant",
    "sample.per_class": 2,
}
BATCH = Batch(jax.random.normal(jax.random.key(0), (12, 8, 8, 1)), jnp.arange(12, dtype=jnp.int32) % 3)
X, T = BATCH.image[:6], jnp.linspace(1.0, 999.0, 6)
Y = BATCH.label[:6]


def config(process: Any = None, **changes: Any) -> Any:
    made = adm_classifier.get_config()
    with made.unlocked():
        if process:
            made.process = process.get_config().process
        for name, value in (SMALL | {name.replace("__", "."): value for name, value in changes.items()}).items():
            group, _, field = name.rpartition(".")
            made[group][field] = value
    return made


def moved(params: Any, seed: int = 0, scale: float = 0.05) -> Any:
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(seed), len(leaves))
    return tree.unflatten(
        [leaf + scale * jax.random.normal(key, leaf.shape) for key, leaf in zip(keys, leaves, strict=True)]
    )


@pytest.fixture(scope="module")
def task() -> Classifier:
    return Classifier(config(optimizer__learning_rate=2e-3, ema__decay=0.9))


@pytest.fixture(scope="module")
def state(task: Classifier) -> TrainState:
    return jax.jit(task.init)(purpose_key(0, "init"))


@pytest.fixture(scope="module")
def params(state: TrainState) -> Any:
    """Of a network that is not fresh."""
    return moved(state.params)


@pytest.fixture(scope="module")
def step(task: Classifier) -> Any:
    return jax.jit(task.step)


@pytest.fixture(scope="module")
def trained(step: Any, state: TrainState) -> tuple[TrainState, list[dict[str, float]]]:
    """After steps on one batch, and their metrics."""
    rows = []
    for i in range(150):
        state, metrics = step(state, BATCH, jax.random.key(i))
        rows.append({name: float(total / weight) for name, (total, weight) in metrics.items() if weight > 0})
    return state, rows


def test_the_loss_falls_from_that_of_chance_and_most_labels_become_right(
    trained: tuple[TrainState, list[dict[str, float]]],
) -> None:
    _, rows = trained
    told = {"loss", "accuracy", "attention_logit", "learning_rate", "grad_norm", "update_norm", "param_norm"}
    assert {name for name in rows[0] if "/" not in name} == told | {"skipped", "stopped"}
    loss, accuracy = (np.asarray([row[name] for row in rows]) for name in ("loss", "accuracy"))
    assert loss[:3].mean() == pytest.approx(np.log(3), abs=0.3)
    # Near pure noise nothing can be known.
    assert loss[-30:].mean() < 0.75 * np.log(3) and accuracy[-30:].mean() > 0.6
    assert np.all((accuracy >= 0) & (accuracy <= 1)) and np.allclose(accuracy * 12 % 1, 0, atol=1e-4)


def test_what_it_learned_is_surer_the_less_noise_there_is(
    task: Classifier, trained: tuple[TrainState, list[dict[str, float]]]
) -> None:
    log_p = jax.jit(task.log_p(trained[0].ema))
    eps = jax.random.normal(jax.random.key(9), BATCH.image.shape)

    def sureness(t: float) -> float:
        times = jnp.full(12, t)
        x = task.process.noised(BATCH.image, eps, times)
        return float(jnp.mean(log_p(x, task.process.network_time(times), BATCH.label)))

    nearly_none, some, nearly_all = (sureness(t) for t in (0.01, 0.3, 0.99))
    assert nearly_none > some > nearly_all and nearly_none > -0.2


def test_a_step_moves_every_parameter(step: Any, state: TrainState, params: Any) -> None:
    after, _ = step(state.replace(params=params), BATCH, jax.random.key(0))
    assert int(after.step) == 1
    for before, now in zip(*map(jax.tree.leaves, (params, after.params)), strict=True):
        assert not np.array_equal(before, now)


def test_probabilities_sum_to_one_and_are_those_of_the_logits(task: Classifier, params: Any) -> None:
    log_p = jax.jit(task.log_p(params))
    each = np.stack([log_p(X, T, jnp.full(6, label)) for label in range(3)], axis=1)
    np.testing.assert_allclose(np.exp(each).sum(axis=1), 1, rtol=1e-5)
    assert np.all(each < 0) and np.ptp(each) > 0.01
    logits = jax.jit(task.model.apply)({"params": params}, X, T)
    np.testing.assert_allclose(each, jax.nn.log_softmax(logits), rtol=1e-4)
    np.testing.assert_allclose(log_p(X, T, Y), each[np.arange(6), Y], rtol=1e-5)


def test_a_fresh_classifier_with_a_silent_pool_knows_nothing_and_says_so() -> None:
    silent = Classifier(config(model__pool="adaptive"))
    params = jax.jit(silent.init_params)(jax.random.key(0))
    np.testing.assert_allclose(jax.jit(silent.log_p(params))(X, T, Y), -np.log(3), rtol=1e-6)
    _, metrics = jax.jit(silent.step)(jax.jit(silent.init)(jax.random.key(0)), BATCH, jax.random.key(0))
    assert metrics["loss"][0] == pytest.approx(np.log(3), rel=1e-6)


def test_a_label_that_there_is_not_has_no_probability(task: Classifier, params: Any) -> None:
    found = np.asarray(jax.jit(task.log_p(params))(X, T, jnp.asarray([0, 1, 2, 3, 4, 99])))
    assert np.all(np.isfinite(found[:3])) and np.all(np.isnan(found[3:]))


def test_its_gradient_is_that_of_log_p(task: Classifier, trained: tuple[TrainState, list[dict[str, float]]]) -> None:
    params = trained[0].params
    times = jnp.full(6, 0.3)
    slope = jax.jit(lambda x: classifier_gradient(task.process, task.log_p(params), x, times, Y))(X)
    log_p = jax.jit(lambda x: task.log_p(params)(x, task.process.network_time(times), Y))
    way = jax.random.normal(jax.random.key(3), X.shape)
    h = 1e-2
    expected = (np.asarray(log_p(X + h * way), np.float64) - log_p(X - h * way)) / (2 * h)
    np.testing.assert_allclose(np.sum(slope * way, axis=(1, 2, 3)), expected, rtol=0.02, atol=1e-3)
    assert np.max(np.abs(expected)) > 0.05


def test_the_gradients_of_all_labels_weighted_by_their_probabilities_cancel(task: Classifier, params: Any) -> None:
    """The sum over y of p(y) grad log p(y) is the gradient of 1."""
    log_p = task.log_p(params)

    def both(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        return log_p(x, T, y), jax.grad(lambda x: jnp.sum(log_p(x, T, y)))(x)

    values, slopes = jax.vmap(jax.jit(both), (None, 0))(X, jnp.tile(jnp.arange(3)[:, None], (1, 6)))
    terms = np.exp(values)[..., None, None, None] * slopes
    assert np.max(np.abs(terms)) > 1e-3
    np.testing.assert_allclose(np.sum(terms, axis=0), 0, atol=1e-6)


@pytest.mark.parametrize("process", [dit_edm, dit_rf])
def test_with_another_process_the_network_sees_what_that_process_shows(process: Any) -> None:
    other = Classifier(config(process))
    params = moved(jax.jit(other.init_params)(jax.random.key(0)))
    t = jnp.linspace(0.05, 0.9, 6)
    x = 5 * X
    told, seen = other.process.network_time(t), other.process.network_input(x, t)
    logits = jax.jit(other.model.apply)({"params": params}, seen, told)
    expected = np.asarray(jax.nn.log_softmax(logits))[np.arange(6), Y]
    np.testing.assert_allclose(jax.jit(other.log_p(params))(x, told, Y), expected, rtol=1e-3)
    assert (process is dit_edm) == bool(np.any(np.abs(seen - x) > 0.1))


def test_features_are_maps_of_images_without_noise(task: Classifier, params: Any) -> None:
    compute = jax.jit(task.features)
    maps = compute(params, X)
    assert maps.shape == (6, 4, 4, 32) and maps.dtype == jnp.float32
    alone = compute(params, X[:1])
    np.testing.assert_allclose(alone[0], maps[0], atol=1e-5)
    assert np.max(np.abs(maps - compute(params, X[::-1]))) > 0.01


def test_dropout_is_active_in_training_alone(
    task: Classifier, step: Any, trained: tuple[TrainState, list[dict[str, float]]]
) -> None:
    dropping, state = Classifier(config(model__dropout=0.5)), trained[0]
    losses = [each(state, BATCH, jax.random.key(1))[1]["loss"][0] for each in (step, jax.jit(dropping.step))]
    assert abs(losses[0] - losses[1]) > 1e-3
    np.testing.assert_array_equal(*(jax.jit(each.log_p(state.ema))(X, T, Y) for each in (task, dropping)))


def test_previews_show_the_averages_gradient_from_the_same_noise_in_every_row(
    task: Classifier, state: TrainState, params: Any
) -> None:
    shown = state.replace(ema=params)
    key = purpose_key(0, "preview")
    first = task.preview(shown, key)
    assert first.shape == (3, 2, 8, 8, 1) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, task.preview(shown.replace(params=moved(params, 1)), key))
    assert np.any(first != task.preview(shown.replace(ema=moved(params, 1)), key))
    assert np.any(first[0] != first[1])
    # The longest change is white or black.
    assert np.all(np.max(np.abs(first.astype(float) - 127.5), axis=(2, 3, 4)) > 126)
    frames = task.animate(shown, key)
    assert frames.shape == (FRAMES, 3, 2, 8, 8, 1)
    np.testing.assert_array_equal(frames[FRAMES // 2], first)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (dict(model__pool="mean"), "config.model.pool: 'mean'"),
        (dict(model__num_head_channels=20), "num_head_channels"),
        (dict(model__dtype="float8"), "config.model.dtype"),
        (dict(model__widht=3), "widht"),
    ],
)
def test_what_does_not_fit_is_refused_when_the_task_is_made(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as refused:
        Classifier(config(**changes))
    assert said in str(refused.value) and "\n" not in str(refused.value)


def test_how_it_is_trained_matters_to_who_trains_alone() -> None:
    made = Classifier(config(optimizer__name="sgd"))
    assert jax.eval_shape(made.init_params, jax.random.key(0))
    with pytest.raises(UserError, match="^config.optimizer.name: 'sgd' is not one of "):
        jax.eval_shape(made.init, jax.random.key(0))


def test_a_network_that_is_no_classifier_is_refused() -> None:
    made = dit_rf.get_config()
    made.data.num_classes = 3
    with pytest.raises(UserError, match="^config.model.name: dit is no classifier; take adm_classifier$"):
        Classifier(made)
