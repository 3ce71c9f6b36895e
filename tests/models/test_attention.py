"""Laws of attention: its formula in plain numpy, its precision, who computes it, norms and rotary positions."""

from __future__ import annotations

import contextlib
import functools
import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.models import attention
from archirf_jax.models.layers import DIAGNOSTICS

RANDOM = np.random.default_rng(0)
Q, K, V = (RANDOM.normal(size=(2, n, 2, 4)).astype(np.float32) for n in (3, 5, 5))


def plain(q: Any, k: Any, v: Any) -> np.ndarray:
    """softmax(q k' / sqrt(width)) v in float64, one head of one example after the other."""
    q, k, v = (np.asarray(a, np.float64) for a in (q, k, v))
    out = np.zeros(q.shape)
    for b in range(len(q)):
        for h in range(q.shape[2]):
            for i, query in enumerate(q[b, :, h]):
                logits = k[b, :, h] @ query / math.sqrt(len(query))
                weights = np.exp(logits - logits.max())
                out[b, i, h] = weights @ v[b, :, h] / weights.sum()
    return out


def test_attention_is_the_formula() -> None:
    np.testing.assert_allclose(attention.attend(Q, K, V), plain(Q, K, V), atol=1e-6)


def test_a_bias_is_added_to_the_logits_and_keeps_flash_attention_away() -> None:
    bias = np.random.default_rng(1).normal(size=(2, 3, 5)).astype(np.float32)
    logits = np.einsum("bnhd,bmhd->bhnm", Q, K) / 2 + bias
    logits[..., 4] = -np.inf
    weights = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    with attention.using(lambda *_: pytest.fail("flash attention takes no bias")):
        ours = attention.attend(Q, K, V, mask=np.arange(5)[None] < 4, bias=bias)
    np.testing.assert_allclose(ours, np.einsum("bhnm,bmhd->bnhd", weights, V), atol=1e-6)


def test_the_softmax_is_in_float32_whatever_the_dtype() -> None:
    """Logits near 140 that differ by less than a bfloat16 resolves there keep their weights."""
    q = np.full((1, 1, 1, 4), 16.0)
    k = np.stack([np.full(4, 4.375), [4.375, 4.375, 4.375, 4.40625]])[None, :, None]
    v = np.asarray([0.0, 1.0])[None, :, None, None] * np.ones(4)
    q, k, v = (jnp.asarray(a, jnp.bfloat16) for a in (q, k, v))
    assert jnp.bfloat16(140.0) == jnp.bfloat16(140.25)
    ours = attention.attend(q, k, v)
    assert ours.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(ours, np.float64), plain(q, k, v), rtol=2**-8)
    assert abs(float(ours[0, 0, 0, 0]) - 0.5) > 0.05


@pytest.mark.parametrize(
    ("platform", "dtype", "width", "chosen"),
    [
        ("gpu", jnp.bfloat16, 64, "cudnn"),
        ("gpu", jnp.float16, 8, "cudnn"),
        ("gpu", jnp.bfloat16, 128, "cudnn"),
        ("gpu", jnp.float32, 64, ""),
        ("gpu", jnp.bfloat16, 136, ""),
        ("gpu", jnp.bfloat16, 12, ""),
        ("cpu", jnp.bfloat16, 64, ""),
        ("tpu", jnp.bfloat16, 64, ""),
    ],
)
def test_flash_attention_is_asked_for_where_it_runs(
    platform: str, dtype: Any, width: int, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def record(q: Any, k: Any, v: Any, implementation: str) -> Any:
        asked.append(implementation)
        return q

    monkeypatch.setattr(jax, "default_backend", lambda: platform)
    monkeypatch.setattr(jax.nn, "dot_product_attention", record)
    x = jnp.zeros((1, 4, 2, width), dtype)
    attention.attend(x, x, x)
    assert asked == ([chosen] if chosen else [])


@pytest.mark.parametrize(("queries", "keys", "lengths"), [(3, 3, None), (4, 3, None), (3, 4, None), (5, 7, [7, 0])])
def test_flash_attention_is_given_even_numbers_of_tokens(
    queries: int, keys: int, lengths: list[int] | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    for name in ("check_cudnn_version", "check_compute_capability"):
        monkeypatch.setattr(cudnn, name, lambda *_, **__: 91200)
    of_keys = None if lengths is None else jnp.asarray(lengths)
    x, y = (jax.random.normal(jax.random.key(n), (2, n, 2, 8), jnp.bfloat16) for n in (queries, keys))

    def results(attend: Any, q: Any, k: Any, v: Any) -> Any:
        out, pull = jax.vjp(lambda *each: attend(*each, key_lengths=of_keys), q, k, v)
        return out, *pull(out)

    # jax itself takes these shapes, gradients included.
    jax.eval_shape(functools.partial(results, attention.flash), x, y, y)

    def formula(q: Any, k: Any, v: Any, key_value_seq_lengths: Any = None, **_: Any) -> Any:
        return attention.plain(q, k, v, None, key_value_seq_lengths)

    monkeypatch.setattr(jax.nn, "dot_product_attention", formula)
    compiled = jax.jit(results, static_argnums=0)
    for ours, exact in zip(compiled(attention.flash, x, y, y), compiled(attention.plain, x, y, y), strict=True):
        np.testing.assert_allclose(np.float32(ours), np.float32(exact), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("kind", attention.QK_NORMS)
def test_layers_keep_the_dtype_that_flash_attention_needs(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Norms and rotations are computed in float32 and leave queries and keys as they came."""
    seen: list[Any] = []
    monkeypatch.setattr(attention, "attend", lambda q, k, v, **_: seen.append((q.dtype, k.dtype, v.dtype)) or q)
    x, angles = jnp.zeros((1, 6, 16), jnp.bfloat16), attention.rotary_angles(2, 3, 8)
    jax.eval_shape(attention.SelfAttention(2, jnp.bfloat16, kind).init, jax.random.key(0), x, angles)
    jax.eval_shape(attention.CrossAttention(2, jnp.bfloat16, kind).init, jax.random.key(0), x, x)
    assert seen == [(jnp.bfloat16,) * 3] * 2


@pytest.mark.parametrize(("width", "heads"), [(16, 3), (16, 0), (16, -2), (16, 32)])
def test_heads_that_do_not_divide_the_width_are_an_error(width: int, heads: int) -> None:
    with pytest.raises(UserError) as caught:
        attention.check_heads(width, heads)
    assert (caught.value.field, caught.value.value) == ("model.num_heads", heads)
    attention.check_heads(16, 4)


def scores(rows: int, columns: int, width: int) -> np.ndarray:
    """(rows, columns, rows, columns): one query and one key, put everywhere, multiplied."""
    angles = attention.rotary_angles(rows, columns, width)
    assert angles.shape == (rows * columns, width // 2) and angles.dtype == np.float32
    q, k = (np.broadcast_to(RANDOM.normal(size=width), (1, rows * columns, 1, width)) for _ in "qk")
    q, k = (np.asarray(attention.rotate(jnp.asarray(a, jnp.float32), angles))[0, :, 0] for a in (q, k))
    return (q @ k.T).reshape(rows, columns, rows, columns)


@pytest.mark.parametrize(("rows", "columns", "width"), [(4, 3, 8), (2, 5, 4), (5, 4, 12)])
def test_scores_of_rotary_positions_depend_on_the_offset_of_rows_and_columns_only(
    rows: int, columns: int, width: int
) -> None:
    found = scores(rows, columns, width)
    seen: dict[tuple[int, int], float] = {}
    for r, c, s, d in np.ndindex(*found.shape):
        first = seen.setdefault((s - r, d - c), found[r, c, s, d])
        assert found[r, c, s, d] == pytest.approx(first, abs=1e-4)
    # Every offset is another score: rows and columns are distinguished, and so are the two directions.
    values = np.sort(list(seen.values()))
    assert np.diff(values).min() > 1e-6


def test_rotary_angles_are_the_formula() -> None:
    """Row times frequency, then column times frequency; frequencies from 1 downwards, as in the paper's 1-D case."""
    angles = attention.rotary_angles(3, 4, 8)
    for row in range(3):
        for column in range(4):
            expected = [row, row / 10_000**0.5, column, column / 10_000**0.5]
            np.testing.assert_allclose(angles[row * 4 + column], expected, rtol=1e-6)


def test_rotations_keep_lengths_and_leave_alone_what_is_not_turned() -> None:
    angles = attention.rotary_angles(2, 3, 8)
    x = jnp.asarray(RANDOM.normal(size=(2, 6, 3, 8)), jnp.float32)
    turned = attention.rotate(x, angles)
    np.testing.assert_allclose(jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5)
    np.testing.assert_array_equal(turned[:, 0], x[:, 0])  # row 0, column 0
    assert np.abs(turned[:, 1:] - x[:, 1:]).max((0, 2, 3)).min() > 0.01
    np.testing.assert_array_equal(attention.rotate(x, jnp.zeros((6, 4))), x)
    np.testing.assert_allclose(attention.rotate(turned, -angles), x, atol=1e-6)
    assert attention.rotate(x.astype(jnp.bfloat16), angles).dtype == jnp.bfloat16


@pytest.mark.parametrize("width", [6, 2, 9])
def test_rotary_positions_need_a_head_of_two_axes_of_pairs(width: int) -> None:
    with pytest.raises(UserError) as caught:
        attention.rotary_angles(2, 2, width)
    assert caught.value.field == "model.positions"


def stirred(module: nn.Module, *inputs: Any) -> tuple[Any, np.ndarray]:
    """Parameters that are normal noise, and the module's output."""
    random = np.random.default_rng(1)
    shapes = jax.eval_shape(module.init, jax.random.key(0), *inputs)["params"]
    params = jax.tree.map(lambda leaf: random.normal(0, 0.5, leaf.shape).astype(np.float32), shapes)
    return params, jax.tree.map(np.asarray, jax.jit(lambda params: module.apply({"params": params}, *inputs))(params))


def linear(params: Any, x: np.ndarray) -> np.ndarray:
    return x.astype(np.float64) @ params["kernel"].astype(np.float64) + params.get("bias", 0.0)


def heads(x: np.ndarray, number: int) -> np.ndarray:
    return x.reshape(*x.shape[:2], number, -1)


def normed(kind: str, params: Any, x: np.ndarray) -> np.ndarray:
    if not kind:
        return x
    x = x - x.mean(-1, keepdims=True) if kind == "layer" else x
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * params["scale"] + params.get("bias", 0.0)


@pytest.mark.parametrize("use_bias", [True, False])
@pytest.mark.parametrize("kind", attention.QK_NORMS)
def test_self_attention_is_the_formula(kind: str, use_bias: bool) -> None:
    x = RANDOM.normal(size=(2, 6, 8)).astype(np.float32)
    angles = attention.rotary_angles(3, 2, 4) if use_bias else None
    params, ours = stirred(attention.SelfAttention(2, qk_norm=kind, use_bias=use_bias), x, angles)
    project = params["project"]
    assert ("bias" in project["qkv"]) == use_bias
    q, k, v = (heads(part, 2) for part in np.split(linear(project["qkv"], x), 3, axis=2))
    q, k = normed(kind, project.get("query_norm"), q), normed(kind, project.get("key_norm"), k)
    if angles is not None:
        q, k = (np.asarray(attention.rotate(jnp.asarray(a), angles)) for a in (q, k))
    np.testing.assert_allclose(ours, linear(params["out"], plain(q, k, v).reshape(x.shape)), atol=1e-4)


@pytest.mark.parametrize("kind", attention.QK_NORMS)
def test_cross_attention_is_the_formula(kind: str) -> None:
    x, context = (RANDOM.normal(size=(2, n, 6)).astype(np.float32) for n in (4, 3))
    params, ours = stirred(attention.CrossAttention(3, qk_norm=kind), x, context)
    k, v = (heads(part, 3) for part in np.split(linear(params["key_value"], context), 2, axis=2))
    q = normed(kind, params.get("query_norm"), heads(linear(params["query"], x), 3))
    k = normed(kind, params.get("key_norm"), k)
    np.testing.assert_allclose(ours, linear(params["out"], plain(q, k, v).reshape(x.shape)), atol=1e-4)


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_normed_queries_and_keys_bound_the_logits(kind: str) -> None:
    """At initialisation gains are 1: each has the length sqrt(width) at most, so a logit is sqrt(width) at most."""
    x = 1e3 * RANDOM.normal(size=(1, 5, 32)).astype(np.float32)
    module = attention.Projection(num_heads=2, qk_norm=kind)
    (q, k, _), _ = jax.jit(module.init_with_output)(jax.random.key(0), x)
    logits = np.einsum("bnhd,bmhd->bhnm", q, k) / math.sqrt(16)
    assert 1 < np.abs(logits).max() < math.sqrt(16) * 1.001
    (q, k, _), _ = jax.jit(module.clone(qk_norm=None).init_with_output)(jax.random.key(0), x)
    assert np.abs(np.einsum("bnhd,bmhd->bhnm", q, k)).max() > 1e4


def test_root_mean_square_norms_are_in_float32() -> None:
    x = jnp.asarray(RANDOM.normal(size=(3, 8)) * 1e-2, jnp.bfloat16)
    np.testing.assert_allclose(
        attention.rms_normalized(x), normed("rms", {"scale": 1.0}, np.asarray(x, np.float64)), 1e-5
    )
    assert attention.rms_normalized(x).dtype == jnp.float32
    out, variables = attention.RMSNorm().init_with_output(jax.random.key(0), x)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(variables["params"]["scale"], np.ones(8))


class Asking(nn.Module):
    """Attention of what it is given, which sows its largest logit."""

    @nn.compact
    def __call__(self, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        attention.sow_logit(self, q, k)
        return attention.attend(q, k, v)


@pytest.mark.parametrize("flash", [False, True])
def test_the_largest_logit_of_one_image_in_16_is_sown_when_somebody_asks(flash: bool) -> None:
    q, k, v = (np.concatenate([x * i for i in range(1, 25)]) for x in (Q, K, V))
    with attention.using(lambda q, k, v, *_: v[:, : q.shape[1]]) if flash else contextlib.nullcontext():
        _, sown = Asking().apply({}, q, k, v, mutable=[DIAGNOSTICS])
    logits = np.einsum("bnhd,bmhd->bhnm", q, k) / q.shape[-1] ** 0.5
    assert np.max(logits[::16]) < np.max(logits)
    np.testing.assert_allclose(sown[DIAGNOSTICS]["attention_logit"], np.max(logits[::16]), rtol=1e-5)
    assert not isinstance(Asking().apply({}, Q, K, V), tuple)
    assert not Asking().init(jax.random.key(0), Q, K, V)


MASK = np.asarray([[True, False, True, True, False], [False, True, False, False, False]])
LENGTHS = np.asarray([4, 1], np.int32)
NOTHING: list[dict[str, Any]] = [dict(mask=np.zeros((2, 5), bool)), dict(key_lengths=np.zeros(2, np.int32))]


def test_keys_that_are_masked_out_are_as_if_they_were_not_there() -> None:
    ours = np.asarray(attention.attend(Q, K, V, mask=MASK))
    for b, some in enumerate(MASK):
        expected = plain(Q[b : b + 1], K[b : b + 1, some], V[b : b + 1, some])
        np.testing.assert_allclose(ours[b : b + 1], expected, atol=1e-6)
    each = np.stack([MASK, MASK[::-1], np.ones_like(MASK)], axis=1)  # (B, N, M): a mask for each query
    ours = np.asarray(attention.attend(Q, K, V, mask=each))
    for n in range(3):
        one = np.asarray(attention.attend(Q, K, V, mask=each[:, n]))
        np.testing.assert_allclose(ours[:, n], one[:, n], atol=1e-6)


def test_key_lengths_are_the_mask_of_the_first_keys_and_both_may_be_given() -> None:
    first = np.arange(5) < LENGTHS[:, None]
    np.testing.assert_array_equal(attention.attend(Q, K, V, key_lengths=LENGTHS), attention.attend(Q, K, V, mask=first))
    both = attention.attend(Q, K, V, mask=MASK, key_lengths=LENGTHS)
    np.testing.assert_array_equal(both, attention.attend(Q, K, V, mask=MASK & first))
    np.testing.assert_allclose(attention.attend(Q, K, V, mask=np.ones_like(MASK)), attention.attend(Q, K, V), atol=1e-6)


@pytest.mark.parametrize("keys", NOTHING)
def test_where_nothing_may_be_attended_to_there_are_zeros_and_finite_derivatives(keys: dict[str, Any]) -> None:
    def total(q: Any, k: Any, v: Any) -> jax.Array:
        return jnp.sum(jnp.square(attention.attend(q, k, v, **keys) + v[:, :3]))

    np.testing.assert_array_equal(attention.attend(Q, K, V, **keys), np.zeros_like(Q))
    slopes, curved = jax.jit(lambda *at: jax.jvp(jax.grad(total, (0, 1, 2)), at, at))(Q, K, V)
    np.testing.assert_array_equal(slopes[0], np.zeros_like(Q))
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves((slopes, curved)))


@pytest.mark.parametrize("keys", [{}, dict(mask=MASK), dict(key_lengths=LENGTHS)])
def test_tangents_and_gradients_of_gradients_are_finite_differences(keys: dict[str, Any]) -> None:
    """Forward mode, as MeanFlow needs it, and reverse over reverse, as R1 penalties do."""
    at, way = ([RANDOM.normal(size=a.shape).astype(np.float32) for a in (Q, K, V)] for _ in "ab")

    def out(q: Any, k: Any, v: Any) -> jax.Array:
        return attention.attend(q, k, v, **keys)

    @jax.jit
    def both(q: Any, k: Any, v: Any) -> tuple[jax.Array, jax.Array]:
        slope = jax.grad(lambda q: jnp.sum(jnp.sin(out(q, k, v))))(q)
        return out(q, k, v), jnp.sum(jnp.square(slope))

    @jax.jit
    def derivatives(q: Any, k: Any, v: Any) -> tuple[jax.Array, Any]:
        return jax.jvp(out, (q, k, v), tuple(way))[1], jax.grad(lambda *at: both(*at)[1], (0, 1, 2))(q, k, v)

    def near(step: float) -> list[Any]:
        return [a + step * b for a, b in zip(at, way, strict=True)]

    tangent, rise = ((a - b) / 2e-2 for a, b in zip(both(*near(1e-2)), both(*near(-1e-2)), strict=True))
    ours, slopes = derivatives(*at)
    np.testing.assert_allclose(ours, tangent, rtol=1e-2, atol=2e-3)
    assert sum(np.vdot(a, b) for a, b in zip(slopes, way, strict=True)) == pytest.approx(float(rise), rel=2e-2)


def test_on_a_gpu_key_lengths_go_to_cudnn_and_a_mask_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def record(q: Any, k: Any, v: Any, implementation: str, key_value_seq_lengths: Any = None) -> Any:
        asked.append(key_value_seq_lengths)
        return q

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", record)
    x = jnp.ones((3, 5, 2, 8), jnp.bfloat16)
    lengths = jnp.asarray([2, 5, 0])
    out = attention.attend(x, x, x, key_lengths=lengths)
    np.testing.assert_array_equal(asked.pop(), [2, 5, 1])  # of no keys cuDNN promises nothing
    np.testing.assert_array_equal(out[:, 0, 0, 0], [1, 1, 0])
    attention.attend(x, x, x, mask=jnp.ones((3, 5), bool))
    with attention.using(attention.plain):
        attention.attend(x, x, x, key_lengths=lengths)
    assert not asked
