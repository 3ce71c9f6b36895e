"""A convolution is the same however it is computed: values, gradients, gradients of gradients, tangents, batches."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.models import convolution
from archirf_jax.models.convolution import Conv, convolve

# Side of the kernel, stride, image.
SHAPES = [
    (3, 1, (5, 6)),
    (3, 2, (6, 6)),
    (3, 2, (5, 7)),
    (1, 1, (4, 3)),
    (5, 3, (7, 4)),
    (1, 2, (4, 5)),
    (3, 1, (1, 1)),
]
every_shape = pytest.mark.parametrize(("size", "stride", "image"), SHAPES)
IN, OUT = 3, 4


@pytest.fixture(autouse=True)
def float64() -> Iterator[None]:
    """Numbers so long that nothing is hidden by rounding."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(params=["cpu", "gpu"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The way it is computed there; everything runs on the CPU."""
    monkeypatch.setattr(convolution.jax, "default_backend", lambda: request.param)
    return request.param


def numbers(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def given(size: int, image: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Images and a kernel."""
    return numbers(0, 2, *image, IN), numbers(1, size, size, IN, OUT)


def reference(x: Any, kernel: Any, stride: int) -> np.ndarray:
    """By its definition, pixel by pixel: out[i, j] is the sum of the kernel times the image around (s i, s j)."""
    (height, width), k = x.shape[1:3], kernel.shape[0]
    padded = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    rows = [
        [np.einsum("bhwc,hwcd->bd", padded[:, i : i + k, j : j + k], kernel) for j in range(0, width, stride)]
        for i in range(0, height, stride)
    ]
    return np.stack([np.stack(row, axis=1) for row in rows], axis=1)


# Side of the kernel, stride, zeros before and after, image: those of autoencoders, discriminators and AlexNet.
PADDED = [
    (3, 2, (0, 1), (6, 4)),
    (4, 2, (1, 1), (6, 8)),
    (4, 1, (1, 1), (5, 4)),
    (7, 4, (2, 2), (9, 13)),
    (1, 2, (0, 0), (5, 4)),
]


@pytest.mark.parametrize(("size", "stride", "padding", "image"), PADDED)
def test_any_padding_has_the_values_and_derivatives_of_xlas(
    size: int, stride: int, padding: tuple[int, int], image: tuple[int, int], backend: str
) -> None:
    x, kernel = given(size, image)

    def theirs(x: jax.Array, kernel: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(
            *(x, kernel, (stride, stride), [padding] * 2), dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    def derivatives(f: Any) -> Any:
        slopes = jax.grad(lambda x, kernel: jnp.sum(jnp.sin(f(x, kernel))), (0, 1))
        return f(x, kernel), slopes(x, kernel), jax.jvp(slopes, (x, kernel), (2 * x, kernel + 1))

    ours = jax.jit(lambda: derivatives(lambda x, kernel: convolve(x, kernel, stride, padding)))()
    assert_close(ours, jax.jit(lambda: derivatives(theirs))())


def lax(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    margin = [(kernel.shape[0] // 2,) * 2] * 2
    layout = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, (stride, stride), margin, dimension_numbers=layout)


def assert_close(ours: Any, theirs: Any, tolerance: float = 1e-11) -> None:
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def losses(stride: int, y: np.ndarray) -> tuple[Any, Any]:
    """The same function, not linear in the convolution, of ours and of XLA's."""
    return tuple(
        lambda x, kernel, f=f: jnp.sum(jnp.sin(f(x, kernel, stride)) * y)  # type: ignore[misc]
        for f in (convolve, lax)
    )


def outputs(size: int, stride: int, image: tuple[int, int]) -> np.ndarray:
    return numbers(2, 2, *(-(-side // stride) for side in image), OUT)


@every_shape
def test_values_are_those_of_the_definition(size: int, stride: int, image: tuple[int, int], backend: str) -> None:
    x, kernel = given(size, image)
    expected = reference(x, kernel, stride)
    assert expected.shape == outputs(size, stride, image).shape
    assert_close(jax.jit(convolve, static_argnums=2)(x, kernel, stride), expected)


@every_shape
def test_gradients_by_the_image_and_by_the_kernel_and_tangents_are_xlas(
    size: int, stride: int, image: tuple[int, int]
) -> None:
    x, kernel = given(size, image)
    way = numbers(3, *x.shape), numbers(4, *kernel.shape)
    both = zip(losses(stride, outputs(size, stride, image)), (convolve, lax), strict=True)

    @jax.jit
    def derivatives(x: Any, kernel: Any) -> Any:
        return [
            (jax.value_and_grad(loss, (0, 1))(x, kernel), jax.jvp(lambda x, w, f=f: f(x, w, stride), (x, kernel), way))
            for loss, f in both
        ]

    assert_close(*derivatives(x, kernel))


@pytest.mark.parametrize(("size", "stride", "image"), SHAPES[:3])
def test_gradients_of_gradients_are_xlas(size: int, stride: int, image: tuple[int, int]) -> None:
    """As a classifier's training by its gradient would need them: forward over reverse and reverse over reverse."""
    x, kernel = given(size, image)
    way = numbers(3, *x.shape), numbers(4, *kernel.shape)

    def along(f: Any) -> Any:
        slopes = jax.grad(f, (0, 1))
        return jax.grad(
            lambda x, kernel: sum(jnp.vdot(a, b) for a, b in zip(slopes(x, kernel), way, strict=True)), (0, 1)
        )

    @jax.jit
    def second(x: Any, kernel: Any) -> Any:
        both = losses(stride, outputs(size, stride, image))
        return [(jax.jvp(jax.grad(f, (0, 1)), (x, kernel), way)[1], along(f)(x, kernel)) for f in both]

    assert_close(*second(x, kernel))


@pytest.mark.parametrize(("size", "stride", "image"), SHAPES[2:4])
def test_under_vmap_each_is_its_own(size: int, stride: int, image: tuple[int, int]) -> None:
    images, kernels = numbers(5, 3, 2, *image, IN), numbers(6, 3, size, size, IN, OUT)
    ours, theirs = losses(stride, outputs(size, stride, image))
    alone = jax.jit(jax.grad(theirs, (0, 1)))
    for axes, args in (
        ((0, None), (images, kernels[0])),
        ((None, 0), (images[0], kernels)),
        ((0, 0), (images, kernels)),
    ):
        each = [[a[i] if axis == 0 else a for a, axis in zip(args, axes, strict=True)] for i in range(3)]
        both = jax.vmap(lambda x, w: (convolve(x, w, stride), jax.grad(ours, (0, 1))(x, w)), axes)
        values, slopes = jax.jit(both)(*args)
        assert_close(values, np.stack([reference(x, w, stride) for x, w in each]))
        expected = [alone(x, w) for x, w in each]
        assert_close(slopes, jax.tree.map(lambda *leaves: np.stack(leaves), *expected))


def test_inside_a_compiled_loop_gradients_are_the_same() -> None:
    x, kernel = given(3, (5, 6))
    ours, theirs = losses(1, outputs(3, 1, (5, 6)))

    def descend(f: Any) -> Any:
        def body(_: Any, kernel: jax.Array) -> jax.Array:
            return kernel - 0.01 * jax.grad(f, 1)(x, kernel)

        return jax.jit(lambda kernel: jax.lax.fori_loop(0, 3, body, kernel))(kernel)

    assert_close(descend(ours), descend(theirs))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32])
@pytest.mark.parametrize(("size", "stride", "image"), [SHAPES[0], SHAPES[2], SHAPES[3]])
def test_shorter_numbers_stay_short_and_close(size: int, stride: int, image: tuple[int, int], dtype: Any) -> None:
    short = [array.astype(dtype) for array in given(size, image)]
    wide = [array.astype(np.float64) for array in short]
    y = outputs(size, stride, image).astype(dtype)
    found, exact = (
        jax.jit(lambda *args, f=f: (f(*args, stride), *jax.grad(lambda *a: jnp.sum(f(*a, stride) * y), (0, 1))(*args)))(
            *at
        )
        for f, at in ((convolve, short), (lax, wide))
    )
    for ours, theirs in zip(found, exact, strict=True):
        assert ours.dtype == dtype
        error = np.max(np.abs(np.asarray(ours, np.float64) - theirs)) / np.max(np.abs(theirs))  # type: ignore[operator]
        assert error < (2e-2 if dtype == jnp.bfloat16 else 1e-6)
        assert dtype == jnp.float32 or error > 0


@pytest.mark.parametrize(("size", "stride"), [(1, 1), (3, 1), (3, 2), (5, 1)])
def test_the_layer_is_flaxs_with_its_parameters(size: int, stride: int) -> None:
    with jax.enable_x64(False):
        x = numbers(0, 2, 6, 5, IN).astype(np.float32)
        ours = Conv(OUT, size=size, stride=stride)
        theirs = nn.Conv(OUT, (size, size), strides=stride, padding=size // 2)
        params, own = (jax.jit(each.init)(jax.random.key(0), x)["params"] for each in (theirs, ours))
        assert_close(own, params)
        params = params | {"bias": numbers(1, OUT).astype(np.float32)}
        assert_close(*(jax.jit(each.apply)({"params": params}, x) for each in (ours, theirs)), 1e-5)


def test_the_layer_computes_in_its_dtype_on_float32_parameters() -> None:
    with jax.enable_x64(False):
        x = numbers(0, 2, 6, 5, IN).astype(np.float32)
        params = Conv(OUT, dtype=jnp.bfloat16).init(jax.random.key(0), x)["params"]
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}
        out, exact = (Conv(OUT, dtype=dtype).apply({"params": params}, x) for dtype in (jnp.bfloat16, jnp.float32))
        assert out.dtype == jnp.bfloat16 and 0 < np.max(np.abs(out - exact)) < 0.05


def test_on_the_cpu_gradients_are_made_of_products_and_elsewhere_of_convolutions(backend: str) -> None:
    x, kernel = given(3, (5, 6))
    program = str(jax.make_jaxpr(jax.grad(lambda x, w: jnp.sum(convolve(x, w) ** 2), (0, 1)))(x, kernel))
    assert program.count("conv_general_dilated[") == (1 if backend == "cpu" else 3)


def test_on_a_gpu_a_kernels_gradient_is_laid_out_as_the_kernel_but_not_where_devices_share_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, kernel = given(3, (5, 6))

    def laid_out() -> bool:
        gradient = jax.make_jaxpr(jax.grad(lambda kernel: convolve(x, kernel).sum()))(kernel)
        return "layout_constraint" in str(gradient)

    for backend in ("cpu", "tpu", "gpu"):
        monkeypatch.setattr(convolution.jax, "default_backend", lambda name=backend: name)
        assert laid_out() == (backend == "gpu")
    monkeypatch.setattr(convolution.sharding, "gathers", lambda: True)
    assert not laid_out()
