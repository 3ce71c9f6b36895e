"""The classifier's task: it learns labels through noise, gives probabilities, and its gradient is theirs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.contracts import TrainState
from archirf_jax.errors import UserError
from archirf_jax.models import binding
from archirf_jax.samplers.denoisers import classifier_gradient
from archirf_jax.tasks.classifier import CLASSIFIER, FRAMES, Classifier
from archirf_jax.training.state import purpose_key
from configs import adm_classifier, dit_edm, dit_rf
from tests.tasks.settings import config as configured
from tests.tasks.settings import moved

SMALL = {
    "model.channel_mult": (1,),
    "model.attention_downsamples": (),
    "model.num_head_channels": 16,
    "data.num_classes": 3,
    "data.image_size": 4,
    "model.image_size": 4,
    "schedule.warmup_steps": 0,
    "schedule.name": "constant",
    "sample.per_class": 2,
}
IMAGES = 2 * jax.random.normal(jax.random.key(0), (12, 4, 4, 1))
LABELS = jnp.arange(12, dtype=jnp.int32) % 3
BATCH = {"image": IMAGES, "label": LABELS}
X, T, Y = IMAGES[:6], jnp.linspace(0.001, 0.999, 6), LABELS[:6]
KEY = jax.random.key(1)
TIMES = {dit_edm: "log_normal", dit_rf: "uniform"}


def config(process: Any = None, **changes: Any) -> Any:
    made = configured(adm_classifier, {name.replace("__", "."): value for name, value in changes.items()}, SMALL)
    if process:
        with made.unlocked():
            made.process = process.get_config().process
            made.objective.time_distribution = TIMES[process]
    return made


def networks(state: TrainState, **changes: Any) -> TrainState:
    """The state with other parts of its network."""
    return state.replace(networks={CLASSIFIER: state.networks[CLASSIFIER].replace(**changes)})


def logits_of(task: Classifier, params: Any, x: Any, t: Any) -> Any:
    """Of the network at process times t."""
    process, model_fn = task.process, binding.bind(task.model, params[CLASSIFIER])
    return model_fn(process.network_input(x, t), process.network_time(t), {})[0]


def loss_of(task: Classifier, state: TrainState, params: Any, train: bool = True) -> Any:
    """The mean loss of the batch."""
    drawn, losses = task.losses(state, {}, BATCH, KEY, CLASSIFIER, train=train)
    return jnp.mean(losses(params, drawn, 0)[0])


@pytest.fixture(scope="module")
def task() -> Classifier:
    return Classifier(config(optimizer__learning_rate=4e-3, ema__decay=0.9, model__dropout=0.1), {})


@pytest.fixture(scope="module")
def state(task: Classifier) -> TrainState:
    return jax.jit(task.init)(purpose_key(0, "init"), {})


@pytest.fixture(scope="module")
def params(state: TrainState) -> Any:
    """Of a network that is not fresh."""
    return moved(state.networks[CLASSIFIER].params)


@pytest.fixture(scope="module")
def step(task: Classifier) -> Any:
    return jax.jit(task.step)


@pytest.fixture(scope="module")
def trained(step: Any, state: TrainState) -> tuple[TrainState, list[dict[str, float]]]:
    """After steps on one batch, and their metrics."""
    rows = []
    for i in range(100):
        state, metrics = step(state, {}, BATCH, jax.random.key(i))
        rows.append({name: float(total / weight) for name, (total, weight) in metrics.items() if weight > 0})
    return state, rows


def test_the_loss_falls_from_that_of_chance_and_most_labels_become_right(
    trained: tuple[TrainState, list[dict[str, float]]],
) -> None:
    _, rows = trained
    reported = {"loss", "accuracy", "attention_logit", "learning_rate", "grad_norm", "update_norm", "param_norm"}
    assert reported | {"skipped", "stopped"} <= rows[0].keys()
    loss, accuracy = (np.asarray([row[name] for row in rows]) for name in ("loss", "accuracy"))
    assert loss[:3].mean() == pytest.approx(np.log(3), abs=0.3)
    # Near pure noise nothing can be known.
    assert loss[-30:].mean() < 0.75 * np.log(3) and accuracy[-30:].mean() > 0.6
    assert np.all((accuracy >= 0) & (accuracy <= 1)) and np.allclose(accuracy * 12 % 1, 0, atol=1e-4)


def test_it_is_surer_the_less_noise_there_is(
    task: Classifier, trained: tuple[TrainState, list[dict[str, float]]]
) -> None:
    log_p = jax.jit(task.log_p(trained[0].networks[CLASSIFIER].averages["ema"]))
    eps = jax.random.normal(jax.random.key(9), IMAGES.shape)

    def sureness(t: float) -> float:
        times = jnp.full(12, t)
        return float(jnp.mean(log_p(task.process.noised(IMAGES, eps, times), times, {"label": LABELS})))

    nearly_none, some, nearly_all = (sureness(t) for t in (0.01, 0.3, 0.99))
    assert nearly_none > some > nearly_all and nearly_none > -0.2


def test_a_step_moves_every_parameter(step: Any, state: TrainState, params: Any) -> None:
    after, _ = step(networks(state, params=params), {}, BATCH, jax.random.key(0))
    assert int(after.step) == 1
    for before, now in zip(*map(jax.tree.leaves, (params, after.networks[CLASSIFIER].params)), strict=True):
        assert not np.array_equal(before, now)


def test_probabilities_sum_to_one_and_are_those_of_the_logits(task: Classifier, params: Any) -> None:
    log_p = jax.jit(task.log_p(params))
    each = np.stack([log_p(X, T, {"label": jnp.full(6, label)}) for label in range(3)], axis=1)
    np.testing.assert_allclose(np.exp(each).sum(axis=1), 1, rtol=1e-5)
    assert np.all(each < 0) and np.ptp(each) > 0.01
    logits = jax.jit(lambda x, t: logits_of(task, params, x, t))(X, T)
    np.testing.assert_allclose(each, jax.nn.log_softmax(logits), rtol=1e-4)
    np.testing.assert_allclose(log_p(X, T, {"label": Y}), each[np.arange(6), Y], rtol=1e-5)
    beyond = log_p(X, T, {"label": jnp.asarray([0, 1, 2, 3, 4, 99])})  # no label has no probability
    assert np.all(np.isfinite(beyond[:3])) and np.all(np.isnan(beyond[3:]))


def test_a_fresh_classifier_with_a_silent_pool_knows_nothing(state: TrainState) -> None:
    silent = Classifier(config(model__pool="adaptive"), {})
    params = jax.jit(silent.init_params)(KEY, {})
    found, loss = jax.jit(lambda x: (silent.log_p(params)(x, T, {"label": Y}), loss_of(silent, state, params)))(X)
    np.testing.assert_allclose(found, -np.log(3), rtol=1e-6)
    assert loss == pytest.approx(np.log(3), rel=1e-6)


def test_its_gradient_is_that_of_log_p(task: Classifier, trained: tuple[TrainState, list[dict[str, float]]]) -> None:
    params = trained[0].networks[CLASSIFIER].params
    times = jnp.full(6, 0.3)
    slope = jax.jit(lambda x: classifier_gradient(task.log_p(params), x, times, {"label": Y}))(X)
    log_p = jax.jit(lambda x: task.log_p(params)(x, times, {"label": Y}))
    # Where log p changes most, at the length of noise.
    way = slope * np.sqrt(X[0].size) / jnp.sqrt(jnp.sum(slope**2, axis=(1, 2, 3), keepdims=True))
    h = 1e-2
    expected = (np.asarray(log_p(X + h * way), np.float64) - log_p(X - h * way)) / (2 * h)
    np.testing.assert_allclose(np.sum(slope * way, axis=(1, 2, 3)), expected, rtol=0.02, atol=1e-3)
    assert np.max(np.abs(expected)) > 0.05


def test_the_gradients_of_all_labels_weighted_by_their_probabilities_cancel(task: Classifier, params: Any) -> None:
    """The sum over y of p(y) grad log p(y) is the gradient of 1."""
    log_p = task.log_p(params)

    def both(x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
        condition = {"label": y}
        return log_p(x, T, condition), jax.grad(lambda x: jnp.sum(log_p(x, T, condition)))(x)

    values, slopes = jax.vmap(jax.jit(both), (None, 0))(X, jnp.tile(jnp.arange(3)[:, None], (1, 6)))
    terms = np.exp(values)[..., None, None, None] * slopes
    assert np.max(np.abs(terms)) > 3e-4
    np.testing.assert_allclose(np.sum(terms, axis=0), 0, atol=1e-6)


def test_with_another_process_the_network_sees_what_that_process_shows(state: TrainState, params: Any) -> None:
    other = Classifier(config(dit_edm), {})
    t = jnp.linspace(0.05, 0.9, 6)
    x = 5 * X

    @jax.jit
    def found(x: Any) -> Any:
        log_p = other.log_p(params)(x, t, {"label": Y})
        return log_p, logits_of(other, params, x, t), loss_of(other, state, params)

    log_p, logits, loss = found(x)
    np.testing.assert_allclose(log_p, jax.nn.log_softmax(logits)[np.arange(6), Y], rtol=1e-3)
    assert np.any(np.abs(other.process.network_input(x, t) - x) > 0.1)
    assert np.isfinite(loss)


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
    state, plain = trained[0], Classifier(config(model__dropout=0.0), {})
    params = state.networks[CLASSIFIER].params

    @jax.jit
    def found(x: Any) -> Any:
        each = [one.log_p(params)(x, T, {"label": Y}) for one in (task, plain)]
        return each, loss_of(task, state, params, train=False), loss_of(plain, state, params)

    log_p, measured, undropped = found(X)
    np.testing.assert_allclose(*log_p, rtol=1e-6)
    np.testing.assert_allclose(measured, undropped, rtol=1e-6)
    assert abs(step(state, {}, BATCH, KEY)[1]["loss"][0] - measured) > 1e-4


def test_previews_show_the_averages_gradient_from_the_same_noise_in_every_row(
    task: Classifier, state: TrainState, params: Any
) -> None:
    shown = networks(state, averages={"ema": params})
    key = purpose_key(0, "preview")
    first = task.preview(shown, {}, key)
    assert first is not None and first.shape == (3, 2, 4, 4, 1) and first.dtype == np.uint8
    np.testing.assert_array_equal(first, task.preview(networks(shown, params=moved(params, 1)), {}, key))
    assert np.any(first != task.preview(networks(shown, averages={"ema": moved(params, 1)}), {}, key))
    assert np.any(first[0] != first[1])
    # The longest change is white or black.
    assert np.all(np.max(np.abs(first.astype(float) - 127.5), axis=(2, 3, 4)) > 126)
    frames = task.preview(shown, {}, key, stride=1)
    assert frames is not None and frames.shape == (FRAMES, 3, 2, 4, 4, 1)
    np.testing.assert_array_equal(frames[FRAMES // 2], first)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        (dict(model__pool="mean"), "model.pool"),
        (dict(model__num_head_channels=20), "model.num_head_channels"),
        (dict(model__dtype="float8"), "model.dtype"),
        (dict(model__widht=3), "model.widht"),
        (dict(objective={"name": "ddpm_hybrid", "time_sampling": "loss_second_moment"}), "objective.name"),
        (dict(objective={"name": "uncertainty"}), "objective.name"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_step_is_made(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError) as caught:
        jax.eval_shape(Classifier(config(**changes), {}).init, jax.random.key(0), {})
    assert caught.value.field == field


def test_how_it_is_trained_matters_to_training_alone() -> None:
    made = Classifier(config(optimizer__name="sgd"), {})
    assert jax.eval_shape(made.init_params, jax.random.key(0), {})
    with pytest.raises(UserError) as caught:
        jax.eval_shape(made.init, jax.random.key(0), {})
    assert caught.value.field == "optimizer.name"


def test_a_network_that_is_not_a_classifier_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        Classifier(configured(dit_rf), {})
    assert caught.value.field == "model.name"
