"""Laws of a DiT's options of any design: positions, registers, norms of queries, memory and compilation."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.models.dit import MODULATIONS, DiT
from tests.models.test_dit import FIELDS, LABELS, B, H, T, W, X, Y, shapes, stir

SMALL = FIELDS | dict(depth=1)
ROTARY = DiT(**SMALL | dict(positions="rotary"))
PATCHES = H * W // 4
ROLL = np.roll(np.arange(PATCHES), 1)


@functools.cache
def network(model: DiT) -> Any:
    """(params, x) -> output, compiled."""
    return jax.jit(lambda params, x: model.apply({"params": params}, x, T[: len(x)], {"label": Y[: len(x)]}))


def run(model: DiT, params: Any, x: Any = X) -> np.ndarray:
    return np.asarray(network(model)(params, x))


def stirred(model: DiT, x: Any = X) -> Any:
    return stir(shapes(model, x))


def patches(x: np.ndarray) -> np.ndarray:
    """(B, H, W, C) -> (B, N, 2 2 C)."""
    return x.reshape(len(x), H // 2, 2, W // 2, 2, -1).swapaxes(2, 3).reshape(len(x), PATCHES, -1)


def image(x: np.ndarray) -> np.ndarray:
    """The inverse of `patches`."""
    return x.reshape(len(x), H // 2, W // 2, 2, 2, -1).swapaxes(2, 3).reshape(len(x), H, W, -1)


def stack(params: Any, depth: int) -> Any:
    """Parameters of a loop over blocks as those of one compiled block."""
    blocks = [params[f"block_{i}"] for i in range(depth)]
    rest = {name: value for name, value in params.items() if not name.startswith("block_")}
    return rest | {"blocks_0": jax.tree.map(lambda *leaves: np.stack(leaves), *blocks)}


def both(model: DiT, params: Any) -> tuple[np.ndarray, Any]:
    """The output and the gradients of its summed square."""

    def loss(params: Any) -> tuple[jax.Array, jax.Array]:
        out = jnp.asarray(model.apply({"params": params}, X, T, LABELS))
        return jnp.sum(jnp.square(out)), out

    slope, out = jax.jit(jax.grad(loss, has_aux=True))(params)
    return np.asarray(out), jax.tree.map(np.asarray, slope)


def assert_close(ours: Any, theirs: Any) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4 * np.abs(b).max()), ours, theirs)


def test_blocks_computed_again_or_compiled_once_give_the_same_output_and_gradient() -> None:
    model = DiT(**FIELDS | dict(positions="rotary", registers=1, qk_norm="rms"))
    params = stirred(model)
    output, slope = both(model, params)
    assert all(np.any(leaf) for leaf in jax.tree.leaves(slope))
    for remat, scan in ((True, False), (True, True)):
        other = model.clone(remat=remat, scan=scan)
        given = stack(params, model.depth) if scan else params
        assert shapes(other, X) == jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), given)
        other_output, other_slope = both(other, given)
        assert_close(other_output, output)
        assert_close(other_slope, stack(slope, model.depth) if scan else slope)


@pytest.mark.parametrize("design", ["adaln", "cross_attention", "in_context"])
def test_blocks_of_every_design_may_be_compiled_once(design: str) -> None:
    model = DiT(**FIELDS | dict(conditioning=design, scan=True))
    params = stirred(model.clone(scan=False))
    assert_close(run(model, stack(params, 2)), run(model.clone(scan=False), params))


def program(model: DiT) -> str:
    """What the gradient computes, as text."""
    params = shapes(model, X)
    return str(jax.make_jaxpr(jax.grad(lambda params: jnp.sum(model.apply({"params": params}, X, T, LABELS))))(params))


def test_scan_compiles_one_block_for_all_and_remat_computes_them_again() -> None:
    model = DiT(**FIELDS)
    sizes = [len(program(model.clone(depth=depth, scan=True)).splitlines()) for depth in (2, 5)]
    few, many = (program(model.clone(depth=depth)).count("jit[") for depth in (2, 5))
    assert sizes[0] == sizes[1] and few < many  # equal blocks are traced once, and compiled one by one
    for scan in (False, True):
        plain, again = (program(model.clone(scan=scan, remat=remat)) for remat in (False, True))
        assert "policy=None" not in plain and "policy=None" in again
        assert again.count(" = exp ") + again.count(":f32[4,2,6,6] = exp") > plain.count(" = exp ")


def test_blocks_compiled_once_start_unlike_each_other() -> None:
    model = DiT(**FIELDS | dict(scan=True))
    kernel = np.asarray(
        jax.jit(model.init)(jax.random.key(0), X, T, LABELS)["params"]["blocks_0"]["mlp"]["hidden"]["kernel"]
    )
    assert kernel.shape == (2, 16, 64) and not np.any(kernel[0] == kernel[1])
    # As wide as those of a loop: no dimension is taken for a fan.
    assert np.std(kernel[0]) == pytest.approx(np.sqrt(2 / (16 + 64)), rel=0.1)


@pytest.mark.parametrize("design", MODULATIONS)
def test_registers_matter_and_have_no_place_in_the_output(design: str) -> None:
    model = DiT(**SMALL | dict(conditioning=design, registers=3))
    params = stirred(model)
    assert params["registers"].shape == (3, 16) and "registers" not in shapes(model.clone(registers=0), X)
    out = run(model, params)
    assert out.shape == X.shape
    assert np.all(np.abs(run(model, params | {"registers": params["registers"][:, ::-1]}) - out).max((1, 2, 3)) > 1e-3)


@pytest.mark.parametrize("positions", ["rotary", "sincos"])
def test_registers_have_no_position(positions: str) -> None:
    """Their order means nothing: none of them is turned, and the image's tokens count from 0 whatever their number."""
    model = DiT(**SMALL | dict(registers=3, positions=positions))
    params = stirred(model)
    turned = params | {"registers": params["registers"][[1, 2, 0]]}
    np.testing.assert_allclose(run(model, turned), run(model, params), atol=1e-5)


@pytest.mark.parametrize("positions", ["sincos", "learned", "rotary"])
def test_tokens_know_where_they_are(positions: str) -> None:
    """The patches of an image in another order do not give the outputs in that order."""
    model = DiT(**SMALL | dict(positions=positions, position_size=3))
    params = stirred(model)
    moved = run(model, params, image(patches(X)[:, ROLL]))
    assert np.all(np.abs(patches(moved) - patches(run(model, params))[:, ROLL]).max((1, 2)) > 1e-3)


def test_rotary_positions_are_nothing_but_rotations() -> None:
    """In an image of equal patches rotations change no average, so the output is equal everywhere."""
    out = patches(run(ROTARY, stirred(ROTARY), np.ones_like(X)))
    np.testing.assert_allclose(out, np.broadcast_to(out[:, :1], out.shape), atol=1e-5)


def test_rotary_rows_and_columns_are_two_directions() -> None:
    """The network distinguishes an image from its transpose, patch by patch."""
    x = np.concatenate([X, X[:, :2]], axis=1)  # (4, 6, 6, 3)
    params = stirred(ROTARY, x)
    square = x.reshape(B, 3, 2, 3, 2, 3)
    turned = square.transpose(0, 3, 2, 1, 4, 5).reshape(x.shape)  # patches transposed, pixels inside them not
    out, other = run(ROTARY, params, x), run(ROTARY, params, turned)
    back = other.reshape(square.shape).transpose(0, 3, 2, 1, 4, 5).reshape(x.shape)
    assert np.abs(out - back).max() > 1e-2


@pytest.mark.parametrize("positions", ["sincos", "rotary"])
def test_sizes_larger_than_trained_on_run_with_the_same_parameters(positions: str) -> None:
    model = DiT(**SMALL | dict(positions=positions))
    params, large = stirred(model), np.zeros((1, 10, 14, 3), np.float32)
    assert shapes(model, large) == shapes(model, X)
    out = run(model, params, large)
    assert out.shape == large.shape and np.all(np.isfinite(out))


def test_learned_positions_are_the_middle_of_their_table() -> None:
    model = DiT(**SMALL | dict(positions="learned", position_size=5))
    params = stirred(model)
    assert params["positions"].shape == (25, 16)
    reached = np.any(both(model, params)[1]["positions"], axis=1).reshape(5, 5)
    expected = np.zeros((5, 5), bool)
    expected[1:3, 1:4] = True  # 2 rows and 3 columns of patches; an odd row is left over below
    np.testing.assert_array_equal(reached, expected)


def test_an_image_beyond_the_table_is_refused_before_compilation() -> None:
    model = DiT(**SMALL | dict(positions="learned", position_size=2))
    with pytest.raises(UserError) as caught:
        jax.jit(lambda x: model.init(jax.random.key(0), x, T, LABELS)).trace(X)
    assert caught.value.field == "model.position_size"


@pytest.mark.parametrize(("kind", "design"), [("rms", "cross_attention"), ("layer", "adaln_zero")])
def test_normed_queries_and_keys_do_not_know_how_large_they_were(kind: str, design: str) -> None:
    model = DiT(**SMALL | dict(qk_norm=kind, conditioning=design))

    def larger(path: Any, leaf: np.ndarray) -> np.ndarray:
        name = jax.tree_util.keystr(path)
        if "qkv" in name:  # queries ten times, keys a hundred times as large
            return leaf * np.repeat(np.float32([10, 100, 1]), 16)
        if "'query'" in name:
            return leaf * 10
        return leaf * np.repeat(np.float32([100, 1]), 16) if "key_value" in name else leaf

    params = stirred(model)
    grown = jax.tree_util.tree_map_with_path(larger, params)
    np.testing.assert_allclose(run(model, grown), run(model, params), atol=2e-3)
    plain = model.clone(qk_norm=None)
    params = stirred(plain)
    grown = jax.tree_util.tree_map_with_path(larger, params)
    assert np.abs(run(plain, grown) - run(plain, params)).max() > 0.1


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_norms_of_queries_have_one_gain_a_channel_of_a_head(kind: str) -> None:
    block = shapes(DiT(**SMALL | dict(qk_norm=kind, conditioning="cross_attention")), X)["block_0"]
    for norms in (block["attention"]["project"], block["cross_attention"]):
        for name in ("query_norm", "key_norm"):
            assert {leaf.shape for leaf in jax.tree.leaves(norms[name])} == {(8,)}


@pytest.mark.parametrize("width", [384, 768, 1152])
def test_a_gated_perceptron_has_about_as_many_parameters(width: int) -> None:
    def count(kind: str) -> int:
        model = DiT(**SMALL | dict(hidden_size=width, mlp=kind, num_heads=6))
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(shapes(model, X)["block_0"]["mlp"]))

    assert count("swiglu") == pytest.approx(count("gelu"), rel=0.05)
