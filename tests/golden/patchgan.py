"""The case of the discriminator of patches: logits, losses, their gradients, R1, and the adaptive weight."""

from __future__ import annotations

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from archirf_jax.interop.weights import CONV, SAME, Layout, Path, to_params, to_state
from archirf_jax.models.adm_layers import doubled
from archirf_jax.models.convolution import Conv
from archirf_jax.models.patchgan import STATISTICS, PatchGAN
from archirf_jax.objectives import adversarial
from tests.golden.adm import nhwc
from tests.golden.autoencoders import nchw
from tests.golden.case import Case, settings

DEFAULTS: dict[str, Any] = dict(in_channels=3, width=64, layers=3, latent_channels=4, decoder_width=64, disc_weight=1.0)
MOMENTS = {"mean": "running_mean", "var": "running_var"}


class Decoder(nn.Module):
    """Latents (B, h, w, C) -> images (B, 2h, 2w, out)."""

    width: int
    out: int

    @nn.compact
    def __call__(self, z: jax.Array) -> jax.Array:
        h = nn.silu(Conv(self.width, name="conv_in")(z))
        return Conv(self.out, name="conv_out")(doubled(h))


def rename_discriminator(path: Path) -> tuple[str, Layout]:
    """Where a parameter or running statistic lies in the reference."""
    layer, leaf = path
    kind, _, number = layer.partition("_")
    # Convolution and activation, then convolution, norm and activation again and again.
    place = 3 * int(number) - (kind == "conv") if number.isdigit() and number != "0" else 0
    if leaf == "kernel":
        return f"{place}.weight", CONV
    return f"{place}.{MOMENTS.get(leaf, 'bias' if leaf == 'bias' else 'weight')}", SAME


def run(case: Case) -> dict[str, np.ndarray]:
    """Every output of the case."""
    given = settings("hyper-parameter", case.hyperparameters, DEFAULTS)
    real, z = (jnp.asarray(nhwc(case.inputs[name])) for name in ("real", "z"))
    network = PatchGAN(given["width"], given["layers"], "batch")
    decoder = Decoder(given["decoder_width"], given["in_channels"])
    rename = _numbered(given["layers"])
    like = jax.eval_shape(network.init, jax.random.key(0), real)
    variables = _split(to_params(_part(case, "discriminator.main."), _merged(like), rename), like)
    like = jax.eval_shape(decoder.init, jax.random.key(0), z)["params"]
    params = to_params(_part(case, "decoder."), like, _of_decoder)

    found, (hinge, after) = _program(network, decoder)(variables, params, real, z)
    found |= {
        f"adaptive_weight_{kind}": adversarial.adaptive_weight(
            found[f"grad_norm_nll_{kind}"], found["grad_norm_g"], given["disc_weight"]
        )
        for kind in ("sum", "mean")
    }
    found = {name: nchw(value) for name, value in found.items()}
    found["grad_hinge_main.0.weight"] = np.asarray(to_state(hinge, rename)["0.weight"])
    return found | {f"after/main.{name}": np.asarray(value) for name, value in to_state(after, rename).items()}


@functools.cache
def _program(network: PatchGAN, decoder: Decoder) -> Any:
    """(variables, decoder's parameters, real, z) -> numbers by name, as of `_logits` and `_slopes`; compiled once."""

    def numbers(variables: Any, params: Any, real: jax.Array, z: jax.Array) -> Any:
        found, rest = _logits(network, variables, real, decoder.apply({"params": params}, z))
        return found | _slopes(network, decoder, variables["params"], params, real, z), rest

    return jax.jit(numbers)


def _logits(network: PatchGAN, variables: Any, real: jax.Array, fake: Any) -> Any:
    """(logits, losses and penalties by name, (the hinge loss's gradient, running statistics after both passes))."""
    state, logits = variables[STATISTICS], {}
    for name, images in (("real", real), ("fake", fake)):
        inputs = {"params": variables["params"], STATISTICS: state}
        logits[name], changed = network.apply(inputs, images, mutable=[STATISTICS])
        state = changed[STATISTICS]

    def hinge(params: Any) -> jax.Array:
        return jnp.mean(
            adversarial.hinge(_ask(network, {"params": params}, real), _ask(network, {"params": params}, fake))
        )

    own = adversarial.r1(lambda images: _ask(network, variables, images, running=True), real)
    both = adversarial.r1(lambda images: _ask(network, {"params": variables["params"]}, images), real)
    found = {
        "fake": fake,
        "logits_real": logits["real"],
        "logits_fake": logits["fake"],
        "logits_real_eval": _ask(network, variables, real, running=True),
        "hinge_d_loss": jnp.mean(adversarial.hinge(logits["real"], logits["fake"])),
        "vanilla_d_loss": jnp.mean(adversarial.logistic(logits["real"], logits["fake"])),
        "r1": jnp.mean(both),
        "r1_eval": jnp.mean(own),
        "r1_per_image_eval": own,
    }
    return found, (jax.grad(hinge)(variables["params"]), state)


def _slopes(network: PatchGAN, decoder: Decoder, own: Any, params: Any, real: jax.Array, z: jax.Array) -> Any:
    """Losses of the decoder's images, and the lengths of their gradients by its last layer."""
    losses = {
        "nll_sum": lambda images: jnp.sum(jnp.abs(real - images)) / len(real),
        "nll_mean": lambda images: jnp.mean(jnp.abs(real - images)),
        "g": lambda images: jnp.mean(adversarial.generator(_ask(network, {"params": own}, images))),
    }
    found: dict[str, jax.Array] = {}
    for name, loss in losses.items():

        def by(kernel: Any, loss: Any = loss) -> Any:
            moved = params | {"conv_out": params["conv_out"] | {"kernel": kernel}}
            return loss(decoder.apply({"params": moved}, z))

        value, slope = jax.value_and_grad(by)(params["conv_out"]["kernel"])
        found |= {"g_loss" if name == "g" else name: value, f"grad_norm_{name}": optax.tree.norm(slope)}
    return found


def _ask(network: PatchGAN, variables: Any, images: Any, running: bool = False) -> jax.Array:
    logits: Any = network.apply(variables, images, running=running)
    return logits


def _part(case: Case, prefix: str) -> dict[str, np.ndarray]:
    return {name.removeprefix(prefix): value for name, value in case.params.items() if name.startswith(prefix)}


def _of_decoder(path: Path) -> tuple[str, Layout]:
    layer, leaf = path
    return (f"{layer}.weight", CONV) if leaf == "kernel" else (f"{layer}.bias", SAME)


def _numbered(layers: int) -> Any:
    def rename(path: Path) -> tuple[str, Layout]:
        return rename_discriminator((path[0].replace("out", str(layers + 1)), path[1]))

    return rename


def _merged(variables: Any) -> Any:
    """Parameters and running statistics in one tree."""
    stored = variables.get(STATISTICS, {})
    return {layer: {**leaves, **stored.get(layer, {})} for layer, leaves in variables["params"].items()}


def _split(tree: Any, like: Any) -> Any:
    """The inverse of `_merged`."""
    return jax.tree_util.tree_map_with_path(lambda path, _: tree[path[1].key][path[2].key], like)
