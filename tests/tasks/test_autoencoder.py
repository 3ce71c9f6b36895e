"""Laws of training an autoencoder with a discriminator: whose update is whose, when, and how hard they pull."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.contracts import TrainState
from archirf_jax.errors import UserError
from archirf_jax.objectives import adversarial
from archirf_jax.tasks.building import make_task
from configs import autoencoder
from tests.tasks.settings import config
from tests.tasks.settings import moved as noise_like

SMALL = {
    **{"data.num_classes": 10, "model.block_out_channels": (8,), "model.norm_num_groups": 4, "batch_size": 4},
    **{
        "model.latent_channels": 2,
        "model.mid_block_add_attention": False,
        "schedule.warmup_steps": 0,
        "schedule.name": "constant",
        "sample.classes": 4,
    },
}
PATCHES = {"name": "patchgan", "width": 8, "depth": 1, "norm_num_groups": 4}
JUDGED = {
    **{"objective.adversarial_weight": 0.5, "objective.discriminator": PATCHES, "objective.adversarial_start": 1},
    # Hinges that are all active cancel at the last bias of the discriminator.
    **{"objective.adversarial_loss": "logistic", "objective.learned_variance": True},
}
KL = {"model": {"name": "autoencoder_kl", "block_out_channels": (8,), "norm_num_groups": 4, "layers_per_block": 1}}
VQ = {"model": {"name": "vq_model", "num_vq_embeddings": 8, **{k: v for k, v in KL["model"].items() if k != "name"}}}
BATCH = {
    "image": jnp.tanh(jax.random.normal(jax.random.key(0), (4, 8, 8, 1))),
    "label": jnp.arange(4, dtype=jnp.int32),
}
KEY = jax.random.key(5)


@functools.cache
def made(changes: str) -> tuple[Any, Callable[..., Any], TrainState]:
    task: Any = make_task(config(autoencoder, eval(changes), SMALL))
    return task, jax.jit(task.step), drawn_state(task, {})


def task_of(**changes: Any) -> tuple[Any, Callable[..., Any], TrainState]:
    """(task, its compiled step, a state whose parameters are drawn)."""
    return made(repr(changes))


def untrained(**changes: Any) -> tuple[Any, TrainState]:
    """(task, a state whose parameters are drawn and whose other numbers are zeros); nothing is compiled."""
    task: Any = make_task(config(autoencoder, changes, SMALL))
    return task, drawn_state(task, {})


def drawn_state(task: Any, frozen: Any) -> TrainState:
    """A state whose parameters are drawn and whose other numbers are zeros; nothing is compiled."""
    state = jax.eval_shape(task.init, jax.random.key(0), frozen)
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), state)
    networks = {
        name: network.replace(params=noise_like(state.networks[name].params, scale=0.2))
        for name, network in zeros.networks.items()
    }
    return zeros.replace(networks=networks)  # type: ignore[no-any-return]


def moved(before: Any, after: Any) -> dict[str, bool]:
    pairs = zip(jax.tree_util.tree_leaves_with_path(before), jax.tree.leaves(after), strict=True)
    return {jax.tree_util.keystr(path): bool(np.any(leaf != other)) for (path, leaf), other in pairs}


@pytest.mark.slow
def test_every_parameter_of_both_networks_moves_and_averages_follow() -> None:
    task, step, state = task_of(**JUDGED)
    state = after = state.replace(step=jnp.int32(1))
    for i in range(2):
        after, metrics = step(after, {}, BATCH, jax.random.fold_in(KEY, i))
    for name, network in state.networks.items():
        still = [path for path, changed in moved(network.params, after.networks[name].params).items() if not changed]
        assert not [path for path in still if "key" not in path], still  # a softmax does not see its keys' bias
        assert any(moved(network.averages, after.networks[name].averages).values())
    assert all(np.isfinite(pair).all() for pair in metrics.values())


@pytest.mark.parametrize("model", [pytest.param(KL, id="kl"), pytest.param(VQ, id="vq", marks=pytest.mark.slow)])
def test_other_autoencoders_learn_in_the_same_task(model: dict[str, Any]) -> None:
    task, state = untrained(**model)
    drawn, losses = task.losses(state, {}, BATCH, KEY, "model")
    params = state.networks["model"].params
    compute = jax.grad(
        lambda params: (jnp.mean(losses(params, drawn, 0)[0]), losses(params, drawn, 0)[1]), has_aux=True
    )
    slopes, reported = jax.jit(compute)(params)
    still = [path for path, leaf in jax.tree_util.tree_leaves_with_path(slopes) if not np.any(leaf)]
    assert not [path for path in still if "key" not in jax.tree_util.keystr(path)], still
    if model is VQ:
        usage, perplexity = (float(reported[f"codebook_{name}"][0]) for name in ("usage", "perplexity"))
        assert 0 < usage <= 1 <= perplexity <= 8
    else:
        assert float(reported["kl"][0]) > 0


def test_neither_network_is_trained_by_the_loss_of_the_other() -> None:
    task, _, state = task_of(**JUDGED)
    state = state.replace(step=jnp.int32(1))

    def loss(params: dict[str, Any], name: str) -> jax.Array:
        networks = {each: network.replace(params=params[each]) for each, network in state.networks.items()}
        drawn, losses = task.losses(state.replace(networks=networks), {}, BATCH, KEY, name)
        return jnp.mean(losses(params[name], drawn, 0)[0])

    params = {name: network.params for name, network in state.networks.items()}
    slopes = jax.jit(lambda params: {name: jax.grad(loss)(params, name) for name in params})(params)
    for name, by in slopes.items():
        for other, each in by.items():
            assert any(np.any(leaf) for leaf in jax.tree.leaves(each)) == (name == other)


def test_the_discriminator_waits_for_its_start() -> None:
    task, step, state = task_of(**JUDGED)
    first, before = step(state, {}, BATCH, KEY)
    alone = state.replace(networks={"model": state.networks["model"]})
    drawn, losses = task.losses(alone, {}, BATCH, KEY, "model")
    without = jax.jit(lambda params: jnp.mean(losses(params, drawn, 0)[0]))(alone.networks["model"].params)
    assert not any(moved(state.networks["discriminator"], first.networks["discriminator"]).values())
    assert any(moved(state.networks["model"].params, first.networks["model"].params).values())
    assert float(before["adversarial"][1]) == 0 and float(before["discriminator/loss"][1]) == 0
    assert float(before["loss"][0]) == pytest.approx(float(without), rel=1e-5)
    second, after = step(first, {}, BATCH, KEY)
    assert any(moved(first.networks["discriminator"].params, second.networks["discriminator"].params).values())
    assert float(after["adversarial"][1]) == 1 and float(after["discriminator/real"][1]) == 1


def test_the_adaptive_weight_is_the_quotient_of_the_slopes_at_the_last_layer() -> None:
    task, _, state = task_of(**JUDGED)
    learned = {"log_variance": {"value": jnp.float32(0.7)}}
    params, judge = state.networks["model"].params | learned, state.networks["discriminator"].params
    drawn, losses = task.losses(state.replace(step=jnp.int32(1)), {}, BATCH, KEY, "model")

    def with_last(kernel: jax.Array) -> jax.Array:
        decoder = params["model"]["decoder"]
        decoder = decoder | {"conv_out": decoder["conv_out"] | {"kernel": kernel}}
        module = params["model"] | {"decoder": decoder}
        z = task.model.apply({"params": module}, drawn.images, method="encode")
        return task.model.apply({"params": module}, z, method="decode")

    def distance(kernel: jax.Array) -> jax.Array:
        return jnp.mean(jnp.abs(with_last(kernel) - drawn.images)) / jnp.exp(0.7)

    def opinion(kernel: jax.Array) -> jax.Array:
        return -jnp.mean(task.discriminator.apply({"params": judge["discriminator"]}, with_last(kernel)))

    kernel = params["model"]["decoder"]["conv_out"]["kernel"]
    slopes = jax.jit(lambda kernel: (jax.grad(distance)(kernel), jax.grad(opinion)(kernel)))(kernel)
    lengths = [np.linalg.norm(np.ravel(each)) for each in slopes]
    expected = 0.5 * lengths[0] / (lengths[1] + adversarial.EPS)
    reported = jax.jit(lambda params: losses(params, drawn, 0)[1])(params)
    assert float(reported["adversarial_weight"][0]) == pytest.approx(expected, rel=1e-4)
    assert expected > 0


@pytest.mark.parametrize("broken", ["model", "discriminator"])
def test_a_nan_in_either_network_skips_both(broken: str) -> None:
    task, step, state = task_of(**JUDGED)
    network = state.networks[broken]
    nan = jax.tree.map(lambda leaf: leaf * jnp.nan, network.params)
    spoiled = state.replace(step=jnp.int32(1), networks=state.networks | {broken: network.replace(params=nan)})
    after, metrics = step(spoiled, {}, BATCH, KEY)
    for name in state.networks:
        assert not any(
            np.any(np.asarray(a) != np.asarray(b)) and not np.isnan(a).all()
            for a, b in zip(
                jax.tree.leaves(spoiled.networks[name].params),
                jax.tree.leaves(after.networks[name].params),
                strict=True,
            )
        )
    assert float(metrics["skipped"][0]) == 1


def test_training_samples_the_latents_and_evaluation_takes_their_modes() -> None:
    task, state = untrained(**KL)
    params = state.networks["model"].params

    @functools.partial(jax.jit, static_argnums=1)
    def loss(key: jax.Array, train: bool) -> jax.Array:
        drawn, losses = task.losses(state, {}, BATCH, key, "model", train=train)
        return jnp.mean(losses(params, drawn, 0)[0])

    assert loss(KEY, True) != loss(jax.random.key(6), True)
    assert loss(KEY, False) == loss(jax.random.key(6), False)


def test_previews_show_images_above_their_reconstructions() -> None:
    task, _, state = task_of()
    assert task.preview(state, {}, KEY) is None  # no example is known
    task.examples = BATCH
    shown = task.preview(state, {}, KEY)
    task.examples = None
    assert shown.shape == (3, 4, 8, 8, 1) and shown.dtype == np.uint8
    np.testing.assert_array_equal(shown[0], np.round(127.5 * (np.asarray(BATCH["image"]) + 1)).clip(0, 255))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"objective.l1_weight": -1.0}, "objective.l1_weight"),
        ({"objective.kl_weight": float("nan")}, "objective.kl_weight"),
        ({"objective.std_target": 0.0}, "objective.std_target"),
        ({"objective.std_measured": "within"}, "objective.std_measured"),
        ({"objective.adversarial_loss": "wasserstein"}, "objective.adversarial_loss"),
        ({"objective.adversarial_weight": 0.1}, "objective.adversarial_weight"),
        ({"objective.discriminator": PATCHES}, "objective.adversarial_weight"),
        (JUDGED | {"objective.discriminator": {"name": "patchgann"}}, "objective.discriminator.name"),
        (JUDGED | {"objective.discriminator": PATCHES | {"depth": 9}}, "objective.discriminator.depth"),
        ({"objective.lpips_weight": 1.0}, "objective.lpips_weight"),
        ({"model": {"name": "dit"}}, "model.name"),
        ({"accumulation": 2}, "accumulation"),
        ({"data.image_size": 7, "model.block_out_channels": (8, 16)}, "model.block_out_channels"),
    ],
)
def test_what_does_not_fit_is_refused(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(UserError) as caught:
        task: Any = make_task(config(autoencoder, changes, SMALL))
        jax.eval_shape(task.init, jax.random.key(0), {})
    assert caught.value.field == field
