"""Laws of the loss under the network's own uncertainty."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.contracts import Condition, Extras
from archirf_jax.objectives.regression import Regression
from archirf_jax.objectives.uncertainty import Uncertainty
from archirf_jax.processes.base import Process
from archirf_jax.processes.edm import EDM
from archirf_jax.processes.rectified_flow import RectifiedFlow
from tests.objectives.examples import Evaluation, Pair, evaluate
from tests.processes.examples import images, knows

pytestmark = pytest.mark.usefixtures("float64")
X0 = images(64)
ERROR = 1.5
every_process = pytest.mark.parametrize("process", [EDM(), RectifiedFlow()], ids=["edm", "flow"])


def uncertain(process: Process, u: Any, **fields: Any) -> Evaluation:
    """The loss of a network with a constant error that sows u (B,) for the logarithm of its expected loss."""
    fields = {"time_distribution": "log_normal" if isinstance(process, EDM) else "uniform"} | fields

    def network(
        x: jax.Array, t: jax.Array, condition: Condition, *, s: jax.Array | None = None
    ) -> tuple[jax.Array, Extras]:
        return knows(process, X0, ERROR)(x, t, condition)[0], {"log_variance": u, "attention_logit": jnp.float32(2)}

    return evaluate(Pair(process, Uncertainty(**fields)), jax.random.key(0), network, X0)


@every_process
def test_the_uncertainty_that_loses_least_is_the_logarithm_of_the_square_error(process: Process) -> None:
    u = jnp.linspace(-3, 3, 64)
    np.testing.assert_allclose(uncertain(process, u).losses, ERROR**2 / np.exp(u) + u, rtol=1e-9)
    slope = jax.jit(jax.grad(lambda u: jnp.sum(uncertain(process, u).losses)))
    best = np.log(ERROR**2)
    np.testing.assert_allclose(slope(jnp.full(64, best)), 0, atol=1e-9)
    assert np.all(slope(jnp.full(64, best - 0.1)) < 0) and np.all(slope(jnp.full(64, best + 0.1)) > 0)


@every_process
def test_what_is_reported_is_the_plain_loss_and_the_mean_uncertainty(process: Process) -> None:
    found = uncertain(process, jnp.linspace(-3, 5, 64)).metrics
    np.testing.assert_allclose(found["uncertainty"], [1, 1], rtol=1e-6)
    np.testing.assert_array_equal(found["attention_logit"], [2, 1])
    quarters = sum(value for name, value in found.items() if name.startswith("loss_t/"))
    np.testing.assert_allclose(quarters, [64 * ERROR**2, 64], rtol=1e-6)


def test_weights_of_times_and_the_space_of_the_loss_are_those_of_regression() -> None:
    fields: dict[str, Any] = {"loss_weighting": "logit_normal", "loss_space": "x0"}
    process = RectifiedFlow()
    zero = uncertain(process, jnp.zeros(64), **fields)
    plain = evaluate(Pair(process, Regression(**fields)), jax.random.key(0), knows(process, X0, ERROR), X0)
    np.testing.assert_allclose(zero.losses, plain.losses, rtol=1e-12)
    one = uncertain(process, jnp.ones(64), **fields)
    np.testing.assert_allclose(one.losses, plain.losses / np.e + one.drawn.weight, rtol=1e-9)


def test_its_head_says_how_large_and_how_wide_it_is() -> None:
    module = Uncertainty(time_scale=250.0, channels=16).wrap(None)
    assert (module.time_scale, module.channels) == (250.0, 16)
