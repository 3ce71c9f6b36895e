"""Laws of the projected discriminator: what is trained, what each logit sees, and the kernels' singular values."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.models.lpips import LPIPS
from archirf_jax.models.projected_discriminator import ProjectedDiscriminator, largest_singular_value
from archirf_jax.objectives import adversarial

RANDOM = np.random.default_rng(0)
MAPS = [jnp.asarray(RANDOM.normal(size=(2, side, side, 3 + side)), jnp.float32) for side in (8, 4, 2)]
MODEL = ProjectedDiscriminator(width=8)


@pytest.fixture(scope="module")
def params() -> Any:
    return jax.jit(MODEL.init)(jax.random.key(0), MAPS)["params"]


@functools.partial(jax.jit, static_argnums=2)
def logits(params: Any, maps: Any, model: ProjectedDiscriminator = MODEL) -> Any:
    return model.apply({"params": params}, maps)


def test_every_scale_gives_as_many_logits_of_its_own_example(params: Any) -> None:
    found = logits(params, MAPS, MODEL)
    assert found.shape == (2, 3 * 2 * 2) and found.dtype == jnp.float32
    other = logits(params, [x.at[0].add(1) for x in MAPS], MODEL)
    np.testing.assert_array_equal(other[1], found[1])
    assert np.all(other[0] != found[0])


def test_heads_are_trained_and_the_mixing_is_not(params: Any) -> None:
    slopes = jax.jit(jax.grad(lambda params: jnp.sum(jnp.square(logits(params, MAPS)))))(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(slopes):
        assert np.any(leaf) != ("frozen_" in jax.tree_util.keystr(path)), path
    fixed = [name for name in params if name.startswith("frozen_")]
    assert len(fixed) == 6 and not np.array_equal(params["frozen_channels_0"][..., :8, :], np.eye(8)[None, None])


@pytest.mark.parametrize("cross_scale", [False, True])
def test_coarse_maps_reach_finer_heads_by_mixing_across_scales_alone(cross_scale: bool, params: Any) -> None:
    model = MODEL.clone(cross_scale=cross_scale)
    changed = [*MAPS[:2], MAPS[2] + 1]
    moved = np.asarray(logits(params, changed, model) != logits(params, MAPS, model)).reshape(2, 3, -1)
    assert np.all(moved.any(axis=(0, 2)) == [cross_scale, cross_scale, True])
    finest = [MAPS[0] + 1, *MAPS[1:]]
    moved = np.asarray(logits(params, finest, model) != logits(params, MAPS, model)).reshape(2, 3, -1)
    assert moved.any(axis=(0, 2)).tolist() == [True, False, False]


def test_the_penalty_of_slopes_has_the_gradient_of_finite_differences(params: Any) -> None:
    trained = {name: leaf for name, leaf in params.items() if name.startswith("head_")}
    direction = jax.tree.map(lambda leaf: jnp.asarray(RANDOM.normal(size=leaf.shape), jnp.float32), trained)

    @jax.jit
    @jax.value_and_grad
    def penalty(trained: Any) -> jax.Array:
        def judged(finest: jax.Array) -> jax.Array:
            return jnp.asarray(MODEL.apply({"params": params | trained}, [finest, *MAPS[1:]]))

        return jnp.mean(adversarial.r1(judged, MAPS[0]))

    def at(step: float) -> float:
        return float(penalty(jax.tree.map(lambda leaf, along: leaf + step * along, trained, direction))[0])

    _, slope = penalty(trained)
    along = sum(jax.tree.leaves(jax.tree.map(lambda a, b: float(jnp.sum(a * b)), slope, direction)))
    assert along == pytest.approx((at(1e-3) - at(-1e-3)) / 2e-3, rel=0.1) and along != 0


def test_the_largest_singular_value_is_that_of_a_decomposition_and_so_is_its_slope() -> None:
    left, right = (np.linalg.qr(RANDOM.normal(size=(12, 5)))[0] for _ in range(2))
    matrix = jnp.asarray(left @ np.diag([3, 1.5, 1, 0.5, 0.1]) @ right.T, jnp.float32)
    value, slope = jax.value_and_grad(largest_singular_value)(matrix)
    assert float(value) == pytest.approx(3, rel=1e-4)
    np.testing.assert_allclose(slope, np.outer(left[:, 0], right[:, 0]), atol=5e-3)


def test_it_takes_the_features_of_lpips() -> None:
    network = LPIPS("vgg")
    images = jnp.zeros((2, 32, 32, 1))
    variables = jax.eval_shape(network.init, jax.random.key(0), images, images)
    maps = jax.eval_shape(lambda v: network.apply(v, images, method="features"), variables)
    found = jax.eval_shape(lambda maps: MODEL.init_with_output(jax.random.key(0), maps)[0], maps)
    assert found.shape == (2, 5 * 2 * 2)


def test_a_width_out_of_its_range_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        jax.eval_shape(MODEL.clone(width=0).init, jax.random.key(0), MAPS)
    assert caught.value.field == "objective.discriminator.width"
