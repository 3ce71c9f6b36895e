"""Muon: orthogonal steps of hidden matrices, AdamW of what leads in and out, and which is which in every network."""

from __future__ import annotations

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from optax import contrib

from archirf_jax import models, registry
from archirf_jax.models.binding import init
from archirf_jax.training import muon as rule
from archirf_jax.training.muon import COEFFICIENTS, orthogonal
from archirf_jax.training.optimizers import make_optimizer, make_schedule
from tests.training.toys import config

RATE = 0.1


def muon(name: str = "muon", **fields: Any) -> Any:
    made = config(optimizer__name=name, **{f"optimizer__{field}": value for field, value in fields.items()})
    return make_optimizer(made, make_schedule(made))


def steps(params: Any, n: int = 1, name: str = "muon", **changes: Any) -> tuple[list[Any], list[Any]]:
    """(gradients, updates) of n steps."""
    params, optimizer = {"net": params}, muon(name, learning_rate=RATE, **changes)
    state, gradients, found = optimizer.init(params), [], []
    update = jax.jit(optimizer.update)
    for i in range(n):
        keys = jax.tree.unflatten(jax.tree.structure(params), range(len(jax.tree.leaves(params))))
        seeds = jax.tree.map(lambda number, i=i: jax.random.key(100 * i + number), keys)
        gradients.append(jax.tree.map(lambda p, key: jax.random.normal(key, p.shape), params, seeds))
        updates, state = update(gradients[-1], state, params)
        found.append(updates["net"])
    return [each["net"] for each in gradients], found


def polar(matrix: np.ndarray) -> np.ndarray:
    """The nearest orthogonal matrix."""
    u, _, v = np.linalg.svd(matrix, full_matrices=False)
    return u @ v


@pytest.mark.parametrize(("shape", "momentum"), [((48, 64), 0.95), ((64, 48), 0.5), ((32, 32), 0.8)])
def test_a_hidden_matrix_takes_nearly_orthogonal_steps_of_two_tenths_the_rate(
    shape: tuple[int, int], momentum: float
) -> None:
    """Liu et al. 2025, Eq. 4; five iterations leave most singular values between 0.7 and 1.2 (Jordan et al. 2024)."""
    gradients, updates = steps({"hidden": {"kernel": jnp.ones(shape)}}, n=4, muon_momentum=momentum)
    mean = np.zeros(shape)
    for i, (gradient, update) in enumerate(zip(gradients, updates, strict=True)):
        g, found = np.asarray(gradient["hidden"]["kernel"], np.float64), np.asarray(update["hidden"]["kernel"])
        mean = momentum * mean + (1 - momentum) * g
        ahead = momentum * mean / (1 - momentum ** (i + 2)) + (1 - momentum) * g / (1 - momentum ** (i + 1))
        sizes = np.linalg.svd(found / (RATE * 0.2 * np.sqrt(max(shape))), compute_uv=False)
        assert 0.5 < sizes.min() < sizes.max() < 1.25
        assert np.sqrt(np.mean(found**2)) == pytest.approx(RATE * 0.2, rel=0.15)
        assert -np.vdot(found, polar(ahead)) > 0.97 * np.linalg.norm(found) * np.linalg.norm(polar(ahead))


@pytest.mark.parametrize("smallest", [1.0, 1e-3, 1e-7])
@pytest.mark.parametrize("shape", [(64, 64), (32, 128), (96, 16), (2, 24, 48)])
def test_products_of_rows_give_what_iterations_on_the_matrix_give(shape: tuple[int, ...], smallest: float) -> None:
    """Against optax's five iterations, in float64, on matrices of singular values from 1 down to the smallest."""
    random, rank = np.random.default_rng(0), min(shape[-2:])
    u, _ = np.linalg.qr(random.normal(size=(*shape[:-1], rank)))
    v, _ = np.linalg.qr(random.normal(size=(*shape[:-2], shape[-1], rank)))
    x = (u * np.geomspace(1, smallest, rank)) @ v.swapaxes(-2, -1)
    x /= np.linalg.norm(x, axis=(-2, -1), keepdims=True)
    axes = contrib.MuonDimensionNumbers((len(shape) - 2,), (len(shape) - 1,))
    with jax.enable_x64(True):
        rule = contrib.scale_by_muon(COEFFICIENTS, eps=0.0, weight_dimension_numbers=axes)
        exact, _ = rule.update(jnp.asarray(x), rule.init(jnp.asarray(x)))  # the first mean is the gradient
    found = jax.jit(orthogonal)(np.float32(x))
    np.testing.assert_allclose(found, exact, atol=1e-4 * np.max(np.abs(exact)))


def test_it_goes_on_with_the_state_of_optax_s_own_muon() -> None:
    params = {"hidden": {"kernel": jnp.ones((4, 6))}, "more": {"kernel": jnp.ones((3, 3, 2, 4))}}

    def axes(params: Any) -> Any:
        return jax.tree.map(lambda p: contrib.MuonDimensionNumbers(tuple(range(p.ndim - 1)), (p.ndim - 1,)), params)

    usual: dict[str, Any] = dict(momentum=0.95, eps=1e-8, weight_decay=0.1, decay_mask=None, moment_dtype=jnp.float32)
    ours = rule.muon(optax.constant_schedule(0.1), axes, **usual)
    theirs = contrib.muon(
        optax.constant_schedule(0.1), weight_decay=0.1, muon_weight_dimension_numbers=axes, consistent_rms=0.2
    )
    random = np.random.default_rng(0)
    gradients = jax.tree.map(lambda p: jnp.asarray(random.normal(size=p.shape), jnp.float32), params)
    expected, state = theirs.update(gradients, theirs.init(params), params)
    found, own = ours.update(gradients, ours.init(params), params)
    assert jax.tree.structure(state) == jax.tree.structure(own)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), (expected, state), (found, own))
    expected, _ = theirs.update(gradients, state, params)
    found, _ = ours.update(gradients, state, params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), expected, found)


EDGES = {
    "patch_embedding": {"kernel": jnp.ones((4, 6)), "bias": jnp.ones(6)},
    "time_embedding": {"hidden": {"kernel": jnp.ones((6, 6))}},
    "label_embedding": {"embedding": jnp.ones((3, 6))},
    "final_layer": {"linear": {"kernel": jnp.ones((6, 4)), "bias": jnp.ones(4)}},
    "registers": jnp.ones((2, 6)),
}


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_what_leads_in_and_out_of_a_network_and_what_is_not_a_matrix_follows_adamw(decay: float) -> None:
    params = EDGES | {"hidden": {"kernel": jnp.ones((6, 6)), "bias": jnp.ones(6)}}
    muon, adamw = (steps(params, 4, name, weight_decay=decay)[1] for name in ("muon", "adamw"))
    for ours, theirs in zip(muon, adamw, strict=True):
        assert np.max(np.abs(ours["hidden"].pop("kernel") - theirs["hidden"].pop("kernel"))) > 0.1 * RATE
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), ours, theirs)


def one_update(gradients: Any) -> Any:
    """Of parameters that are as large as their gradients."""
    optimizer = muon(weight_decay=0.1)
    return jax.jit(lambda g: optimizer.update(g, optimizer.init(g), g)[0])({"net": gradients})["net"]


def test_a_stacked_kernel_moves_as_its_layers_would_alone_and_a_convolution_as_a_matrix() -> None:
    stack, filters = (jax.random.normal(jax.random.key(0), shape) for shape in ((3, 8, 16), (3, 3, 4, 8)))
    together = one_update({"blocks_0": {"mlp": {"kernel": stack}}, "conv": {"kernel": filters}})
    layers = {f"block_{i}": {"mlp": {"kernel": stack[i]}} for i in range(3)}
    alone = one_update(layers | {"conv": {"kernel": filters.reshape(36, 8)}})
    for i, layer in enumerate(together["blocks_0"]["mlp"]["kernel"]):
        np.testing.assert_allclose(layer, alone[f"block_{i}"]["mlp"]["kernel"], rtol=1e-3, atol=1e-9)
    conv = together["conv"]["kernel"].reshape(36, 8)
    np.testing.assert_allclose(conv, alone["conv"]["kernel"], rtol=1e-3, atol=1e-9)


# What is not a hidden matrix of a network: every kernel that the pattern finds, and nothing else.
TRANSFORMER = r"patch_embedding/.*|time_embedding/.*|final_layer/.*"
OUTSIDE = {
    "dit": TRANSFORMER,
    "mmdit": rf"{TRANSFORMER}|context/.*",  # what makes tokens of labels; the blocks' own stream of them is inside
    "adm_unet": r"time_embedding/.*|encoder/input/kernel|output/kernel|decoder/output/kernel|out/kernel",
    "adm_classifier": r"time_embedding/.*|encoder/input/kernel|head/.*",
    "edm2_unet": r"(enc_0_conv|out_conv|label_embedding|noise_embedding)/kernel",
}
INSIDE = {
    "dit": {"block_0/attention/project/qkv/kernel", "block_0/mlp/out/kernel", "block_0/modulation/kernel"},
    "mmdit": {"block_0/context/perceptron/hidden/kernel", "block_0/image/out/kernel"},
    "adm_unet": {"encoder/down_0_block_0/conv_in/kernel", "encoder/middle_attention/qkv/kernel"},
    "adm_classifier": {"encoder/down_0_block_0/embedding_projection/kernel", "encoder/middle_block_1/conv_out/kernel"},
    "edm2_unet": {"enc_0_block0/conv_0/kernel", "dec_0_block0/embedding/kernel"},
}


ADM = {"channel_mult": (1, 2), "num_res_blocks": 1, "model_channels": 32, "attention_downsamples": (2,)}
FIELDS: dict[str, dict[str, Any]] = {
    "dit": {"hidden_size": 32, "num_heads": 2, "depth": 1},
    "mmdit": {"hidden_size": 32, "num_heads": 2, "depth": 2},
    "adm_unet": ADM,
    "adm_classifier": ADM | {"image_size": 8},
    "edm2_unet": {"channel_mult": (1, 2), "num_blocks": 1, "model_channels": 32, "attention_levels": (1,)},
}


def hidden_matrices(kernels: Any) -> set[str]:
    """Names of the parameters of a module that have a moment of Muon."""
    hidden = set()
    for path, leaf in jax.tree_util.tree_leaves_with_path(jax.eval_shape(muon().init, {"net": kernels})):
        where = jax.tree_util.keystr(path)
        if re.search(r"\['(muon|hidden)'\].*\.mu\[", where) and leaf.ndim:
            hidden.add("/".join(re.findall(r"\['(\w+)'\]", where.partition(".mu")[2])[1:]))
    return hidden


def matrices(name: str, **changes: Any) -> tuple[dict[str, Any], set[str]]:
    """(shapes of all kernels by name, names of those with a moment of Muon)."""
    module = registry.build(models, "model.name", name, {"num_classes": 10} | FIELDS[name] | changes)
    inputs = jnp.zeros((1, 8, 8, 1)), jnp.zeros(1), {"label": jnp.zeros(1, jnp.int32)}
    params = jax.eval_shape(lambda key: init(module, key, *inputs), jax.random.key(0))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    kernels = {"/".join(entry.key for entry in path): leaf.shape for path, leaf in leaves if path[-1].key == "kernel"}
    return kernels, hidden_matrices(params)


def test_with_a_head_of_uncertainty_the_hidden_matrices_are_the_same() -> None:
    inner = {"enc_0_conv": {"kernel": jnp.ones((3, 3, 2, 2))}, "block_0": {"kernel": jnp.ones((4, 4))}}
    context = {"context": {"kernel": jnp.ones((4, 4))}}
    wrapped = {"network": inner | context, "uncertainty": {"kernel": jnp.ones((4, 1))}}
    assert hidden_matrices(inner | context) == {"block_0/kernel"}
    assert hidden_matrices(wrapped) == {"network/block_0/kernel"}


@pytest.mark.parametrize("name", OUTSIDE)
def test_which_kernels_of_each_network_are_hidden_matrices(name: str) -> None:
    kernels, hidden = matrices(name)
    outside = {kernel for kernel in kernels if re.fullmatch(OUTSIDE[name], kernel)}
    assert hidden == kernels.keys() - outside
    assert hidden >= INSIDE[name] and outside


def test_blocks_that_are_stacked_are_as_hidden_as_others() -> None:
    kernels, hidden = matrices("dit", scan=True)
    assert {kernels[name][0] for name in hidden} == {1} and all(name.startswith("blocks_") for name in hidden)
    assert len(hidden) == len(matrices("dit")[1])
