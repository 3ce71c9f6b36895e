"""A network that is trained with its text encoder: padding does not count, order does, every parameter learns."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax import models, registry
from archirf_jax.errors import UserError
from archirf_jax.models import binding

TEXT: dict[str, Any] = dict(name="text_transformer", vocab_size=7, max_length=5, hidden_size=8, depth=1, num_heads=2)
NETWORKS: dict[str, dict[str, Any]] = {
    "mmdit": dict(context="text", context_width=8, pooled_width=8, hidden_size=8, depth=2, num_heads=2, patch_size=2),
    "dit": dict(conditioning="cross_attention", context_width=8, hidden_size=8, depth=1, num_heads=2, patch_size=2),
}
X = np.random.default_rng(0).normal(size=(2, 4, 4, 1)).astype(np.float32)
T = np.asarray([200.0, 700.0], np.float32)
IDS = np.asarray([[1, 2, 3, 0, 0], [4, 5, 0, 0, 0]], np.int32)
CONDITION = {"ids": IDS, "mask": IDS > 0}


def build(network: str, **text: Any) -> Any:
    fields = {"network": {"name": network, **NETWORKS[network]}, "text": TEXT | text}
    return registry.build(models, "model.name", "captioned", fields)


@pytest.fixture(scope="module", params=NETWORKS)
def made(request: pytest.FixtureRequest) -> tuple[Any, Any, Any]:
    """(the network, its parameters, their compiled answer to a condition)."""
    model = build(request.param)
    params = jax.jit(lambda key: binding.init(model, key, X, T, CONDITION))(jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)  # the last layer of a fresh network is 0
    random = np.random.default_rng(1)
    drawn = [leaf + 0.3 * random.normal(size=leaf.shape).astype(np.float32) for leaf in leaves]
    apply = jax.jit(lambda params, condition: binding.bind(model, params)(X, T, condition)[0])
    return model, jax.tree.unflatten(tree, drawn), apply


def answer(made: tuple[Any, Any, Any], **changes: Any) -> np.ndarray:
    _, params, apply = made
    return np.asarray(apply(params, CONDITION | changes))


def test_words_behind_the_mask_change_nothing_and_words_and_their_order_do(made: tuple[Any, Any, Any]) -> None:
    found = answer(made)
    np.testing.assert_allclose(answer(made, ids=np.where(IDS > 0, IDS, 6)), found, rtol=1e-4, atol=1e-5)
    other, swapped = IDS.copy(), IDS.copy()
    other[0, 1] = 6
    swapped[0, :2] = IDS[0, 1::-1]
    for ids in (other, swapped):
        changed = np.max(np.abs(answer(made, ids=ids) - found), axis=(1, 2, 3))
        assert changed[0] > 1e-3 and changed[1] < 1e-4  # the other text's image stays


def test_texts_without_words_have_an_answer(made: tuple[Any, Any, Any]) -> None:
    assert np.all(np.isfinite(answer(made, mask=np.zeros_like(IDS, bool))))


def test_gradients_reach_every_parameter_of_both(made: tuple[Any, Any, Any]) -> None:
    model, params, _ = made

    def loss(params: Any) -> jax.Array:
        return jnp.sum(jnp.square(binding.bind(model, params)(X, T, CONDITION)[0]))

    slopes = jax.jit(jax.grad(loss))(params)
    assert slopes.keys() == {"network", "text"}
    still = [path for path, leaf in jax.tree_util.tree_leaves_with_path(slopes) if not np.any(leaf)]
    # Adding one vector to all keys changes no attention; a norm of queries and keys is not in these networks.
    assert not [path for path in still if path[-2].key != "key"]


def test_what_does_not_fit_is_refused_by_its_field() -> None:
    model = build("mmdit", max_length=4)
    with pytest.raises(UserError) as caught:
        jax.eval_shape(lambda key: binding.init(model, key, X, T, CONDITION), jax.random.key(0))
    assert caught.value.field == "model.max_length"
    with pytest.raises(UserError) as caught:
        build("mmdit", name="texts")
    assert caught.value.field == "model.text.name"
    with pytest.raises(UserError) as caught:
        build("mmdit", width=4)
    assert caught.value.field == "model.text.width"
