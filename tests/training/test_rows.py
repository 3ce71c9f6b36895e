"""Replaced rows of a parameter: averages follow, moments begin anew, and nothing else moves."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.contracts import Network
from archirf_jax.training import rows
from archirf_jax.training.optimizers import OPTIMIZERS, evaluation_params
from archirf_jax.training.update import Update
from tests.training.toys import config

CHOSEN = jnp.asarray([True, False, True, False])
NEW = jnp.full((4, 3), 7.0)


def trained(name: str) -> Network:
    """A network after a step: its table has moments."""
    update = Update(config(optimizer__name=name, ema__more_decays=(0.5,)), "net")
    params = {"n": {"table": jnp.ones((4, 3)), "other": {"table": jnp.ones((4, 3))}}}
    network = update.init(params)

    def losses(params: dict, drawn: jax.Array, part: int) -> tuple:
        del part
        table = params["n"]["table"] * params["n"]["other"]["table"]
        return jnp.sum(jnp.square(table - drawn[:, None, None]), axis=(1, 2)), {}, {}

    @jax.jit
    def step(network: Network) -> Network:
        gradient = update.gradient(network, 3.0 + jnp.arange(8.0), losses)
        return update.apply(network, gradient, gradient.fine)[0]

    return step(network)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_params_and_averages_have_the_new_rows_and_moments_begin_at_0(name: str) -> None:
    before = trained(name)
    after = rows.replaced(before, ("n", "table"), CHOSEN, NEW)
    kinds = {"moment": 0, "row": 0}
    pairs = zip(jax.tree_util.tree_leaves_with_path(after), jax.tree.leaves(before), strict=True)
    for path, (leaf, old) in ((jax.tree_util.keystr(path), (leaf, old)) for (path, leaf), old in pairs):
        if not path.endswith("['n']['table']"):
            assert np.array_equal(leaf, old), path
            continue
        moment = ".opt" in path and not path.endswith(".z['n']['table']")
        kinds["moment" if moment else "row"] += 1
        assert np.all(np.asarray(leaf)[::2] == (0 if moment else 7)), path
        assert np.array_equal(leaf[1::2], old[1::2]), path
        assert not moment or np.any(old[::2]), path
    assert kinds["moment"] >= 1 and kinds["row"] == 3 + (name == "schedule_free_adamw")
    shown = evaluation_params(after.opt, after.params)
    if shown is not None:
        np.testing.assert_allclose(shown["n"]["table"][::2], 7, rtol=1e-6)


def test_a_module_of_another_name_keeps_its_rows() -> None:
    before = trained("adam")
    after = rows.replaced(before, ("m", "table"), CHOSEN, NEW)
    for field in dataclasses.fields(before):
        for leaf, old in zip(
            jax.tree.leaves(getattr(after, field.name)), jax.tree.leaves(getattr(before, field.name)), strict=True
        ):
            assert np.array_equal(leaf, old)
