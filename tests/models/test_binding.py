"""Laws of binding: what a module is given, what it sows, units it drops, and derivatives of higher order."""

from __future__ import annotations

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax import models
from archirf_jax.contracts import Condition
from archirf_jax.errors import UserError
from archirf_jax.models import attention
from archirf_jax.models.binding import bind, init
from archirf_jax.models.dit import DiT
from archirf_jax.models.edm2_unet import EDM2UNet
from archirf_jax.models.layers import DIAGNOSTICS, EXTRAS, repeat
from archirf_jax.models.mmdit import MMDiT
from archirf_jax.models.uncertainty import Uncertain

RANDOM = np.random.default_rng(0)
X = RANDOM.normal(size=(2, 4, 4, 2)).astype(np.float32)
T = np.asarray([0.2, 0.7], np.float32)
S = T / 2
LABELS = {"label": np.asarray([0, 2], np.int32)}
SIZE: dict[str, Any] = dict(num_classes=3, hidden_size=16, depth=2, num_heads=2)


class Layer(nn.Module):
    """Sows what it is given and a number."""

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        if not self.is_initializing():
            self.sow(EXTRAS, "features", x)
            self.sow(DIAGNOSTICS, "largest", jnp.max(x))
        return x + self.param("shift", nn.initializers.ones_init(), ())


class Sowing(nn.Module):
    """Layers that sow, with a second time and units that are dropped."""

    depth: int = 1
    scan: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, t: jax.Array, condition: Condition, s: jax.Array | None = None) -> jax.Array:
        x = repeat(Layer, self.depth, x, scan=self.scan)
        x = nn.Dropout(0.5)(x, deterministic=not self.has_rng("dropout"))
        return x + (0 if s is None else s[:, None, None, None])


class OneTime(Sowing):
    """The same without a second time."""

    def __call__(self, x: jax.Array, t: jax.Array, condition: Condition) -> jax.Array:
        return super().__call__(x, t, condition)


def test_extras_are_what_is_sown_and_diagnostics_the_largest_of_all_layers() -> None:
    module = Sowing(depth=3, scan=True)
    params = init(module, jax.random.key(0), X, T, {})
    answer, extras = bind(module, params)(X, T, {})
    np.testing.assert_allclose(answer, X + 3, rtol=1e-6)
    assert set(extras) == {"features", "largest"} and extras["largest"].shape == ()
    np.testing.assert_allclose(extras["largest"], X.max() + 2, rtol=1e-6)
    # Under scan too the batch comes first.
    np.testing.assert_allclose(extras["features"], np.stack([X, X + 1, X + 2], axis=1), rtol=1e-6)


def test_parameters_are_the_only_thing_that_init_makes() -> None:
    params = init(Sowing(), jax.random.key(0), X, T, {})
    assert jax.tree.map(jnp.shape, params) == {"block_0": {"shift": ()}}
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}


def test_two_extras_of_one_name_are_refused() -> None:
    module = Sowing(depth=2)
    with pytest.raises(UserError) as caught:
        bind(module, init(module, jax.random.key(0), X, T, {}))(X, T, {})
    assert caught.value.field == "model"


def test_the_second_time_reaches_those_that_take_it() -> None:
    for module, moved in ((Sowing(), True), (OneTime(), False)):
        model_fn = bind(module, init(module, jax.random.key(0), X, T, {}))
        before, after = model_fn(X, T, {})[0], model_fn(X, T, {}, s=S)[0]
        np.testing.assert_allclose(after - before, np.broadcast_to(moved * S[:, None, None, None], X.shape), atol=1e-6)
    for network, moved in ((DiT(**SIZE, two_times=True), True), (DiT(**SIZE), False)):
        params = stirred(Uncertain(network), LABELS)
        run = jax.jit(lambda s, net=network, params=params: bind(Uncertain(net), params)(X, T, LABELS, s=s)[0])
        outs = [run(s) for s in (None, T, S)]
        np.testing.assert_allclose(outs[1], outs[0], atol=1e-4)
        assert bool(np.any(np.abs(outs[2] - outs[0]) > 1e-3)) == moved


def test_units_are_dropped_exactly_with_a_key() -> None:
    module = Sowing()
    params = init(module, jax.random.key(0), X, T, {})
    still, *dropped = (
        bind(module, params, dropout=key)(X, T, {})[0] for key in (None, *map(jax.random.key, (0, 0, 1)))
    )
    np.testing.assert_array_equal(still, X + 1)
    np.testing.assert_array_equal(dropped[0], dropped[1])
    assert np.any(dropped[0] == 0) and np.any(dropped[0] != dropped[2])


@pytest.mark.parametrize(
    ("model", "blocks"), [(DiT(**SIZE), 2), (MMDiT(**SIZE, depth_single=2, scan=True, remat=True), 4)]
)
def test_the_largest_logit_of_all_blocks_is_reported(model: nn.Module, blocks: int) -> None:
    params = stirred(model, LABELS)
    seen: list[float] = []

    def record(q: Any, k: Any, v: Any, *rest: Any) -> jax.Array:
        logits = jnp.einsum("bnhd,bmhd->bhnm", q[:1], k[:1]) / q.shape[-1] ** 0.5
        # Its answer is used, as a callback for its effect alone may not stand in a scan of flax.
        zero = jax.pure_callback(note, jax.ShapeDtypeStruct((), np.float32), jnp.max(logits))
        return attention.plain(q, k, v, *rest) + zero

    def note(largest: Any) -> np.ndarray:
        seen.append(float(largest))
        return np.zeros((), np.float32)

    with attention.using(record):
        answer, extras = jax.block_until_ready(jax.jit(lambda params: bind(model, params)(X, T, LABELS))(params))
    assert len(seen) == blocks
    assert extras["attention_logit"] == pytest.approx(max(seen), rel=1e-5)
    np.testing.assert_allclose(answer, jax.jit(model.apply)({"params": params}, X, T, LABELS), rtol=1e-5, atol=1e-5)


def stirred(model: nn.Module, condition: Condition) -> Any:
    shapes = jax.eval_shape(lambda: init(model, jax.random.key(0), X, T, condition))
    return jax.tree.map(lambda leaf: np.random.default_rng(leaf.size).normal(0, 0.3, leaf.shape).astype("f"), shapes)


TEXT = {
    "tokens": RANDOM.normal(size=(2, 3, 5)).astype(np.float32),
    "mask": np.asarray([[True, False, True], [False] * 3]),
    "pooled": np.ones((2, 4), np.float32),
}
NETWORKS: dict[str, tuple[nn.Module, Condition]] = {
    "dit": (DiT(**SIZE, two_times=True, remat=True, scan=True), LABELS),
    "mmdit": (
        MMDiT(**SIZE | dict(depth=1), depth_single=1, context="text", context_width=5, pooled_width=4, remat=True),
        TEXT,
    ),
    "edm2": (
        EDM2UNet(
            num_classes=3,
            model_channels=8,
            channel_mult=(1,),
            num_blocks=0,
            channels_per_head=8,
            attention_levels=(),
        ),
        LABELS,
    ),
}


@pytest.mark.parametrize("name", ["dit", "edm2", pytest.param("mmdit", marks=pytest.mark.slow)])
def test_networks_have_tangents_and_gradients_of_gradients(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """By finite differences: as MeanFlow (forward mode) and R1 (reverse over reverse) need them, on a GPU as here."""
    model, condition = NETWORKS[name]
    params = stirred(model, condition)
    way, rate = RANDOM.normal(size=X.shape).astype(np.float32), np.asarray([0.5, -1.0], np.float32)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")

    def out(x: Any, t: Any) -> jax.Array:
        return bind(model, params, higher_derivatives=True)(x, t, condition, s=S)[0]

    @jax.jit
    def both(x: Any, t: Any) -> tuple[jax.Array, jax.Array]:
        slope = jax.grad(lambda x: jnp.sum(jnp.sin(out(x, t))))
        return out(x, t), jnp.sum(jnp.square(slope(x)))

    @jax.jit
    def derivatives(x: Any, t: Any) -> tuple[jax.Array, jax.Array]:
        tangent = jax.jvp(out, (x, t), (way, rate))[1]
        slopes = jax.grad(lambda x, t: both(x, t)[1], (0, 1))(x, t)
        return tangent, jnp.vdot(slopes[0], way) + jnp.vdot(slopes[1], rate)

    step = 2e-3
    above, below = (both(X + sign * step * way, T + sign * step * rate) for sign in (1, -1))
    tangent, rise = derivatives(X, T)
    scale = float(np.abs(tangent).max())
    np.testing.assert_allclose((above[0] - below[0]) / (2 * step), tangent, rtol=2e-2, atol=2e-2 * scale)
    assert (above[1] - below[1]) / (2 * step) == pytest.approx(float(rise), rel=5e-2)


def test_higher_derivatives_are_only_chosen_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def record(q: Any, k: Any, v: Any, implementation: str) -> Any:
        asked.append(implementation)
        return q

    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    monkeypatch.setattr(jax.nn, "dot_product_attention", record)
    model = DiT(**SIZE, dtype=jnp.bfloat16)
    params = stirred(model.clone(dtype=jnp.float32), LABELS)
    for higher in (True, False):
        jax.eval_shape(bind(model, params, higher_derivatives=higher), X, T, LABELS)
        assert bool(asked) != higher


def test_networks_and_their_sizes_are_there_by_name() -> None:
    for name in models.__all__:
        assert getattr(models, name).__name__ == name and name in dir(models)
    with pytest.raises(AttributeError):
        models.DIT  # noqa: B018
    model = models.DiT.preset("S/4", num_classes=10, depth=2)
    assert (model.hidden_size, model.patch_size, model.depth, model.num_classes) == (384, 4, 2, 10)
    for network in (models.MMDiT, models.ADMUNet, models.ADMClassifier, models.EDM2UNet):
        with pytest.raises(UserError) as caught:
            network.preset("huge", num_classes=10)
        assert caught.value.field == "preset"
