"""Arithmetic is counted as papers and XLA count it, and loops in full."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from archirf_jax.models import adm_unet, attention, convolution, edm2_unet, mmdit
from archirf_jax.models.binding import bind, init
from archirf_jax.models.dit import PRESETS, DiT
from archirf_jax.training import flops


def shape(*sizes: int, dtype: Any = jnp.float32) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, dtype)


def forward(model: Any, image_shape: tuple[int, int, int], batch: int = 1) -> tuple[Any, ...]:
    """The network as a function, and the shapes of its arguments."""
    inputs = shape(batch, *image_shape), shape(batch), {"label": shape(batch, dtype=jnp.int32)}
    params = jax.eval_shape(lambda key, *inputs: init(model, key, *inputs), jax.random.key(0), *inputs)
    return lambda params, *inputs: model.apply({"params": params}, *inputs), params, *inputs


def by_xla(fn: Any, *args: Any) -> float:
    cost = jax.jit(fn).lower(*args).cost_analysis()
    assert cost is not None
    return float(cost["flops"])


def matmul(x: jax.Array, w: jax.Array) -> jax.Array:
    return x @ w


X, W = shape(3, 5), shape(5, 5)
PRODUCT = 2 * 3 * 5 * 5


@pytest.mark.parametrize(
    ("size", "published"), [("S/2", 6.06), ("B/2", 23.01), ("L/2", 80.71), ("XL/2", 118.64), ("S/4", 1.41)]
)
def test_gflops_are_those_of_the_paper(size: str, published: float) -> None:
    # Peebles & Xie 2022, table 4: multiply-adds of a forward pass on 32x32x4 latents.
    model = DiT(num_classes=1000, learn_sigma=True, scan=True, **PRESETS[size])
    assert flops.count(*forward(model, (32, 32, 4))) / 2e9 == pytest.approx(published, rel=0.005)


def test_what_no_result_depends_on_is_not_counted() -> None:
    model = DiT(num_classes=10, hidden_size=128, depth=2, num_heads=2, patch_size=2, scan=True)
    silent, params, *inputs = forward(model, (16, 16, 3))

    def sowing(params: Any, *inputs: Any) -> tuple[jax.Array, Any]:
        return bind(model, params)(*inputs)

    counted = flops.count(silent, params, *inputs)
    assert counted == flops.count(lambda *args: sowing(*args)[0], params, *inputs)
    assert counted < flops.count(sowing, params, *inputs)


SMALL_EDM2 = dict(model_channels=32, channel_mult=(1, 2), num_blocks=1, attention_levels=(1,), channels_per_head=32)
SMALL_ADM = dict(
    model_channels=32, channel_mult=(1, 2), num_res_blocks=1, attention_downsamples=(2,), num_head_channels=32
)
NETWORKS = {
    "dit": (DiT(num_classes=10, hidden_size=128, depth=2, num_heads=2, patch_size=2), (16, 16, 3)),
    "dit_cross": (
        DiT(num_classes=10, hidden_size=128, depth=2, num_heads=2, conditioning="cross_attention", mlp="swiglu"),
        (16, 16, 3),
    ),
    "mmdit": (mmdit.build(num_classes=10, **{**mmdit.PRESETS["tiny/2"], "hidden_size": 128}), (16, 16, 3)),
    "edm2_unet": (edm2_unet.build(num_classes=10, **{**edm2_unet.PRESETS["tiny"], **SMALL_EDM2}), (16, 16, 3)),
    "adm_unet": (adm_unet.build(num_classes=10, **SMALL_ADM), (16, 16, 3)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_count_as_xla_counts_what_multiplies(name: str) -> None:
    # XLA also counts what works value by value, a few per cent of networks as small as these.
    found = forward(*NETWORKS[name])
    counted, theirs = flops.count(*found), by_xla(*found)
    assert counted < theirs
    assert counted == pytest.approx(theirs, rel=0.1)


@pytest.mark.parametrize("name", ["dit", "adm_unet"])
def test_large_networks_count_as_xla_counts_them(name: str) -> None:
    models = {
        "dit": (DiT(num_classes=10, **PRESETS["B/2"] | {"depth": 2}), (32, 32, 4)),
        "adm_unet": (adm_unet.build(num_classes=10, **SMALL_ADM | {"model_channels": 192}), (32, 32, 3)),
    }
    found = forward(*models[name])
    assert flops.count(*found) == pytest.approx(by_xla(*found), rel=0.02)


def test_a_scanned_network_counts_as_the_same_network() -> None:
    fields = dict(num_classes=10, hidden_size=64, depth=5, num_heads=2)
    counts = [
        flops.count(*forward(DiT(scan=scan, remat=remat, **fields), (8, 8, 3)))
        for scan in (False, True)
        for remat in (False, True)
    ]
    assert len(set(counts)) == 1


@pytest.mark.parametrize(("remat", "times"), [(False, 3), (True, 4)])
def test_training_is_three_times_the_forward_pass_and_four_with_remat(remat: bool, times: int) -> None:
    model = DiT(num_classes=10, hidden_size=128, depth=6, num_heads=2, scan=True, remat=remat)
    fn, params, *inputs = forward(model, (16, 16, 3))
    slope = jax.grad(lambda params, *inputs: jnp.sum(jnp.square(fn(params, *inputs))))
    assert flops.count(slope, params, *inputs) / flops.count(fn, params, *inputs) == pytest.approx(times, rel=0.04)


def test_a_product_is_two_operations_a_multiply_add() -> None:
    assert flops.count(matmul, X, W) == PRODUCT
    assert flops.count(lambda a, b: jnp.einsum("bhnd,bhmd->bhnm", a, b), shape(2, 3, 5, 7), shape(2, 3, 4, 7)) == (
        2 * 2 * 3 * 5 * 4 * 7
    )
    assert flops.count(jnp.exp, X) == 0


def test_programs_inside_programs_are_counted() -> None:
    @jax.custom_vjp
    def with_vjp(x: jax.Array, w: jax.Array) -> jax.Array:
        return x @ w

    with_vjp.defvjp(lambda x, w: (x @ w, (x, w)), lambda kept, slope: (slope @ kept[1].T, kept[0].T @ slope))
    with_jvp = jax.custom_jvp(matmul)
    with_jvp.defjvps(lambda dx, y, x, w: dx @ w, lambda dw, y, x, w: x @ dw)
    for fn in (jax.jit(matmul), jax.checkpoint(matmul), with_jvp, with_vjp, jax.jit(jax.checkpoint(with_jvp))):
        assert flops.count(fn, X, W) == PRODUCT
    for fn in (with_jvp, with_vjp, matmul):
        assert flops.count(jax.grad(lambda x, w, fn=fn: jnp.sum(fn(x, w) ** 2), (0, 1)), X, W) == 3 * PRODUCT


def test_loops_and_branches() -> None:
    def scanned(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.scan(lambda x, _: (x @ w, None), x, None, length=7)[0]

    def until(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.while_loop(lambda x: jnp.sum(x) > 0, lambda x: x @ w, x)

    def either(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.cond(jnp.sum(x) > 0, lambda: x @ w @ w, lambda: x @ w)

    assert flops.count(scanned, X, W) == 7 * PRODUCT
    assert flops.count(lambda x, w: jax.vmap(lambda _: scanned(x, w))(jnp.arange(2)), X, W) == 7 * PRODUCT
    assert flops.count(until, X, W) == PRODUCT  # nobody knows how often
    assert flops.count(either, X, W) == 2 * PRODUCT


def test_what_each_device_does_counts_for_all_of_them() -> None:
    mesh = Mesh(np.asarray(jax.devices()[:4]), ("d",))
    cut, whole = PartitionSpec("d"), PartitionSpec()
    on_all = jax.shard_map(matmul, mesh=mesh, in_specs=(cut, whole), out_specs=cut)
    assert flops.count(on_all, shape(8, 5), W) == 2 * 8 * 5 * 5


@pytest.mark.parametrize(
    ("stride", "padding", "stretch", "spread", "groups"),
    [(1, 1, 1, 1, 1), (2, 1, 1, 1, 1), (1, 0, 1, 1, 1), (1, 2, 2, 1, 1), (1, 2, 1, 2, 1), (1, 1, 1, 1, 2)],
)
def test_convolutions_count_pixels_and_not_the_zeros_around_them(
    stride: int, padding: int, stretch: int, spread: int, groups: int
) -> None:
    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            *(x, kernel, (stride, stride), [(padding, padding)] * 2),
            lhs_dilation=(stretch, stretch),
            rhs_dilation=(spread, spread),
            dimension_numbers=convolution.LAYOUT,
            feature_group_count=groups,
        )

    # Ones in place of numbers: the sum of the result is the number of products.
    x, kernel = jnp.ones((2, 7, 6, 4)), jnp.ones((3, 3, 4 // groups, 8))
    assert flops.count(convolve, x, kernel) == 2 * float(jnp.sum(convolve(x, kernel)))


def test_gradients_of_convolutions_cost_what_the_convolution_does() -> None:
    def loss(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jnp.sum(convolution._native(x, kernel, 1, (1, 1)) ** 2)

    x, kernel = shape(4, 8, 8, 16), shape(3, 3, 16, 32)
    one = flops.count(loss, x, kernel)
    assert flops.count(jax.grad(loss, (0, 1)), x, kernel) == pytest.approx(3 * one)


def test_cudnn_attention_counts_as_the_products_it_stands_for(monkeypatch: pytest.MonkeyPatch) -> None:
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    for name in ("check_cudnn_version", "check_compute_capability", "check_is_flash_attention"):
        monkeypatch.setattr(cudnn, name, lambda *_, **__: 91200)
    q, k = shape(2, 16, 4, 32, dtype=jnp.bfloat16), shape(2, 24, 4, 32, dtype=jnp.bfloat16)

    def fused(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return jax.nn.dot_product_attention(q, k, v, implementation="cudnn")

    def loss(*qkv: jax.Array) -> jax.Array:
        return jnp.sum(fused(*qkv).astype(jnp.float32))

    once = flops.count(attention.attend, q, k, k)
    assert flops.count(fused, q, k, k) == once == 2 * 2 * 2 * 16 * 24 * 4 * 32
    assert flops.count(jax.grad(loss, (0, 1, 2)), q, k, k) == once + 2.5 * once
