"""Laws of the discriminator of patches: what couples examples, what a patch sees, running statistics, refusals."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.models.patchgan import NORMS, STATISTICS, PatchGAN

X = np.random.default_rng(0).normal(size=(3, 32, 32, 3)).astype(np.float32)
MODEL = PatchGAN(width=4, depth=2)


@functools.partial(jax.jit, static_argnums=0)
def fresh(model: PatchGAN) -> Any:
    return model.init(jax.random.key(0), X)


@functools.partial(jax.jit, static_argnums=0)
def apply(model: PatchGAN, params: Any, x: Any) -> Any:
    return model.apply({"params": params}, x)


def logits(model: PatchGAN, x: Any = X, params: Any = None) -> Any:
    return apply(model, fresh(model)["params"] if params is None else params, x)


@pytest.mark.parametrize("norm", NORMS)
def test_examples_are_coupled_by_batch_statistics_alone(norm: str) -> None:
    model = MODEL.clone(norm=norm)
    coupled = np.max(np.abs(logits(model)[:1] - logits(model, X[:1]))) > 1e-5
    assert model.couples_examples == coupled == (norm == "batch")


def test_a_patch_sees_70_pixels_with_the_published_layers_and_34_with_one_less() -> None:
    """Isola et al. 2017, Sec. 4.4; without norms nothing else reaches it."""
    for depth, seen in ((2, 34), (3, 70)):
        model = PatchGAN(width=2, depth=depth, norm="none")
        x = jnp.asarray(np.random.default_rng(1).normal(size=(1, 96, 96, 1)), jnp.float32)
        params = jax.jit(model.init)(jax.random.key(0), x)["params"]

        def middle(x: jax.Array, model: PatchGAN = model, params: Any = params) -> jax.Array:
            found = jnp.asarray(model.apply({"params": params}, x))
            return found[0, found.shape[1] // 2, found.shape[2] // 2, 0]

        rows = np.flatnonzero(np.any(np.asarray(jax.jit(jax.grad(middle))(x)), axis=(0, 2, 3)))
        assert rows[-1] - rows[0] + 1 == seen


def test_running_statistics_are_used_and_kept_only_where_they_are_asked_for() -> None:
    model = MODEL.clone(norm="batch")
    variables = fresh(model)
    begun = variables[STATISTICS]["norm_1"]
    assert np.all(begun["mean"] == 0) and np.all(begun["var"] == 1)
    plain = logits(model, params=variables["params"])
    kept, changed = jax.jit(lambda v: model.apply(v, X, mutable=[STATISTICS]))(variables)
    np.testing.assert_allclose(kept, plain, atol=1e-6)
    assert np.any(changed[STATISTICS]["norm_1"]["mean"] != 0)
    running = jax.jit(lambda v: model.apply(v, X, running=True))(variables)
    assert np.max(np.abs(running - plain)) > 1e-3
    alone = jax.jit(lambda v: model.apply(v, X[:1], running=True))(variables)
    np.testing.assert_allclose(alone, running[:1], atol=1e-6)


def test_after_many_batches_running_statistics_are_those_of_the_data() -> None:
    model = MODEL.clone(norm="batch")
    variables = fresh(model)
    step = jax.jit(lambda v: model.apply(v, X, mutable=[STATISTICS])[1])
    for _ in range(150):
        variables = variables | step(variables)
    running = jax.jit(lambda v: model.apply(v, X, running=True))(variables)
    # The kept variance is the unbiased one.
    np.testing.assert_allclose(running, logits(model, params=variables["params"]), rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("norm", NORMS)
def test_parameters_are_all_that_is_trained_and_all_have_gradients(norm: str) -> None:
    model = MODEL.clone(norm=norm)
    params = fresh(model)["params"]

    def loss(params: Any) -> jax.Array:
        return jnp.sum(jnp.square(model.apply({"params": params}, X)))

    slopes = jax.jit(jax.grad(loss))(params)
    assert not [path for path, leaf in jax.tree_util.tree_leaves_with_path(slopes) if not np.any(leaf)]


def test_in_bfloat16_logits_stay_float32() -> None:
    params = fresh(MODEL)["params"]
    found = logits(MODEL.clone(dtype=jnp.bfloat16), params=params)
    assert found.dtype == jnp.float32 and 0 < np.max(np.abs(found - logits(MODEL, params=params))) < 0.1


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        (dict(norm="layer"), "objective.discriminator.norm"),
        (dict(depth=0), "objective.discriminator.depth"),
        (dict(depth=6), "objective.discriminator.depth"),  # nothing is left of 32 pixels
        (dict(width=0), "objective.discriminator.width"),
        (dict(norm_num_groups=3), "objective.discriminator.norm_num_groups"),
    ],
)
def test_fields_out_of_their_range_are_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError) as caught:
        jax.eval_shape(MODEL.clone(**changes).init, jax.random.key(0), X)
    assert caught.value.field == field
