"""Laws of every objective: what its loss is, what the network is asked, and what is drawn independently."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from archirf_jax import objectives, registry
from archirf_jax.contracts import Models
from archirf_jax.errors import UserError
from archirf_jax.processes.base import Process, ask
from archirf_jax.processes.ddpm import DDPM
from tests.objectives.examples import PAIRS, USUAL, Pair, evaluate, pair, setting
from tests.processes.examples import Spy, images, knows

pytestmark = pytest.mark.usefixtures("float64")
X0 = images(64)
every_pair = pytest.mark.parametrize("trained", PAIRS.values(), ids=PAIRS.keys())
every_process = pytest.mark.parametrize("process", USUAL.values(), ids=USUAL.keys())
KEY = jax.random.key(0)


@every_pair
def test_the_network_that_knows_x0_has_no_loss(trained: Pair) -> None:
    found = evaluate(trained, KEY, knows(trained.process, X0), X0)
    assert found.losses.shape == found.drawn.t.shape == found.drawn.weight.shape == (len(X0),)
    np.testing.assert_allclose(found.losses, 0, atol=1e-9)


@every_process
def test_the_loss_is_the_mean_square_of_the_error_of_each_example(process: Process) -> None:
    error = np.random.default_rng(1).normal(size=X0.shape)
    found = evaluate(pair(process), KEY, knows(process, X0, error), X0)
    np.testing.assert_allclose(found.losses, np.mean(error**2, axis=(1, 2, 3)), rtol=1e-9)
    np.testing.assert_array_equal(found.drawn.weight, 1)


@pytest.mark.parametrize("shape", [(4,), (2, 3, 2, 1)])
@every_process
def test_data_may_have_any_rank(process: Process, shape: tuple[int, ...]) -> None:
    x0, error = np.random.default_rng(1).normal(size=(2, 8, *shape))
    found = evaluate(pair(process), KEY, knows(process, x0, error), x0)
    np.testing.assert_allclose(found.losses, np.mean(error**2, axis=tuple(range(1, x0.ndim))), rtol=1e-9)


@every_process
def test_training_stays_in_single_precision_and_precise(process: Process) -> None:
    with jax.enable_x64(False):
        x0 = jnp.asarray(X0, jnp.float32)
        found = jax.jit(lambda key: evaluate(pair(process), key, knows(process, x0, 1.0), x0))(KEY)
        assert found.losses.dtype == found.drawn.t.dtype == jnp.float32
        np.testing.assert_allclose(found.losses, 1, rtol=2e-3)


@every_pair
def test_the_network_is_asked_about_the_noise_and_the_time_that_were_drawn(trained: Pair) -> None:
    spy, process = Spy(trained.process), trained.process
    drawn = evaluate(trained, KEY, spy, X0).drawn
    asked = spy.x, spy.t
    ask(process, spy, process.noised(drawn.x0, drawn.eps, drawn.t), drawn.t, drawn.condition)
    np.testing.assert_allclose(asked[0], spy.x, rtol=1e-12)
    np.testing.assert_array_equal(asked[1], spy.t)
    np.testing.assert_array_equal(drawn.x0, X0)


@every_process
def test_the_loss_can_be_compiled_and_gives_the_same(process: Process) -> None:
    compiled = jax.jit(lambda key: evaluate(pair(process), key, Spy(process), X0).losses)(KEY)
    np.testing.assert_allclose(compiled, evaluate(pair(process), KEY, Spy(process), X0).losses, rtol=1e-9)


@every_pair
def test_parts_of_a_batch_have_its_losses_and_their_metrics_add_up_to_its_own(trained: Pair) -> None:
    x0, (process, objective) = X0[:8], trained

    def network(x: jax.Array, t: jax.Array, condition: Any, *, s: Any = None) -> Any:
        return jnp.sin(x), {"log_variance": jnp.tanh(jnp.mean(x, axis=(1, 2, 3))), "attention_logit": jnp.max(x) ** 0}

    whole = evaluate(trained, KEY, network, x0)
    cut = [jax.tree.map(lambda leaf, i=i: leaf[i::2], whole.drawn) for i in (0, 1)]
    parts = [objective.losses(Models(network), setting(process), part) for part in cut]
    for i, (losses, metrics, noted) in enumerate(parts):
        np.testing.assert_allclose(losses, whole.losses[i::2], rtol=1e-9)
        assert set(metrics) == set(whole.metrics) and set(noted) == set(whole.noted)
        assert all(value.shape == (2,) and value.dtype == jnp.float32 for value in metrics.values())
    for name, (total, weight) in whole.metrics.items():
        added = sum(np.asarray(metrics[name], np.float64) for _, metrics, _ in parts)
        assert added[0] * weight == pytest.approx(float(total * added[1]), rel=1e-5), name


@every_process
def test_times_noise_and_dropped_conditions_are_independent(process: Process) -> None:
    """With one number an example two draws from the same key would be the same numbers in another guise."""
    drawn = evaluate(pair(process, condition_dropout=0.3), KEY, Spy(process), np.zeros((4000, 1, 1, 1))).drawn
    t, eps, dropped = np.asarray(drawn.t), np.ravel(drawn.eps), np.asarray(drawn.condition["label"]) == 5
    assert scipy.stats.kstest(eps, "norm").pvalue > 1e-3
    assert scipy.stats.binomtest(int(dropped.sum()), len(dropped), 0.3).pvalue > 1e-3
    assert scipy.stats.spearmanr(t, eps).pvalue > 1e-3
    assert scipy.stats.ks_2samp(t[dropped], t[~dropped]).pvalue > 1e-3
    assert scipy.stats.ks_2samp(eps[dropped], eps[~dropped]).pvalue > 1e-3


@every_process
def test_the_examples_of_a_batch_and_two_keys_draw_apart(process: Process) -> None:
    first, other, again = (evaluate(pair(process), jax.random.key(i), Spy(process), X0).drawn for i in (0, 1, 0))
    assert len(np.unique(first.t)) > 0.9 * len(X0) and len(np.unique(first.eps.round(2), axis=0)) == len(X0)
    assert np.mean(first.t == other.t) < 0.1 and np.max(np.abs(first.eps - other.eps)) > 1
    jax.tree.map(np.testing.assert_array_equal, first, again)


@every_process
def test_conditions_reach_the_network_unless_dropped(process: Process) -> None:
    spy, label = Spy(process), jnp.arange(64, dtype=jnp.int32) % 5
    evaluate(pair(process, condition_dropout=0), KEY, spy, X0)
    np.testing.assert_array_equal(spy.condition["label"], label)
    evaluate(pair(process, condition_dropout=1), KEY, spy, X0)
    np.testing.assert_array_equal(spy.condition["label"], np.full(64, 5))
    evaluate(pair(process, condition_dropout={"label": 1.0}), KEY, spy, X0, condition={"label": label, "size": X0})
    np.testing.assert_array_equal(spy.condition["label"], np.full(64, 5))
    np.testing.assert_array_equal(spy.condition["size"], X0)


@every_pair
def test_an_objective_without_importance_sampling_keeps_nothing(trained: Pair) -> None:
    objective = trained.objective
    assert objective.init() == () and objective.remember((), {}) == ()
    assert evaluate(trained, KEY, Spy(trained.process), X0).noted == {}
    assert (objective.couples_examples, objective.higher_derivatives, objective.guidance) == (False, False, "outside")
    if trained.objective.__class__.__name__ != "Uncertainty":
        assert objective.wrap(objective) is objective


@pytest.mark.parametrize(
    ("name", "field", "value"),
    [
        ("regression", "time_distribution", "logit-normal"),
        ("regression", "loss_weighting", "beta"),
        ("regression", "loss_space", "score"),
        ("regression", "logit_std", 0.0),
        ("regression", "logit_std", float("nan")),
        ("regression", "mode_scale", -1.1),
        ("regression", "mode_scale", 1.76),
        ("regression", "mode_scale", float("nan")),
        ("regression", "shift", 0.0),
        ("regression", "shift", -3.0),
        ("regression", "shift", float("inf")),
        ("regression", "P_std", -1.0),
        ("regression", "P_std", float("nan")),
        ("regression", "smallest_divisor", 0.0),
        ("uncertainty", "channels", 0),
        ("uncertainty", "time_scale", float("inf")),
        ("ddpm_hybrid", "likelihood", "tanh"),
        ("ddpm_hybrid", "time_sampling", "importance"),
        ("ddpm_hybrid", "weighting", "snr"),
        ("ddpm_hybrid", "bound_weight", -1.0),
        ("ddpm_hybrid", "bound_weight", float("inf")),
        ("ddpm_hybrid", "min_snr_gamma", 0.0),
        *[(name, "condition_dropout", v) for name in ("regression", "ddpm_hybrid") for v in (-0.1, 1.1, float("nan"))],
    ],
)
def test_a_field_out_of_range_is_named_with_its_value(name: str, field: str, value: Any) -> None:
    others = {"process": DDPM()} if name == "ddpm_hybrid" else {}
    with pytest.raises(UserError) as caught:
        registry.build(objectives, "objective.name", name, {field: value} | others)
    assert caught.value.field == f"objective.{field}" and caught.value.value is value
