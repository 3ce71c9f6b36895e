"""The networks in PyTorch that ours are timed against are the same functions; only where torch is installed."""

from __future__ import annotations

import zlib
from typing import Any

import jax
import numpy as np
import pytest

from archirf_jax.models import adm_unet, edm2_unet
from archirf_jax.models.adm_unet import ADMUNet
from archirf_jax.models.edm2_unet import EDM2UNet
from benchmarks.flops import parameters, shapes_of
from benchmarks.gpu.networks import NETWORKS
from benchmarks.networks import LABEL

torch = pytest.importorskip("torch")
networks_torch_adm = pytest.importorskip("benchmarks.networks_torch_adm")
networks_torch_edm2 = pytest.importorskip("benchmarks.networks_torch_edm2")

CLASSES, SIDE = 3, 8
EDM2: dict[str, Any] = dict(
    model_channels=16, channel_mult=(1, 2), num_blocks=2, attention_levels=(1,), channels_per_head=8
)
ADM: dict[str, Any] = dict(
    model_channels=32, num_res_blocks=2, channel_mult=(1, 2), attention_downsamples=(2,), num_head_channels=16
)
ADM_FIXED: dict[str, Any] = dict(learn_sigma=True, attention_order="new")
SMALL: dict[str, Any] = {
    "edm2": (
        EDM2UNet(num_classes=CLASSES, **EDM2),
        lambda: networks_torch_edm2.EDM2UNet(num_classes=CLASSES, **EDM2),
    ),
    "adm": (
        ADMUNet(num_classes=CLASSES, **ADM, **ADM_FIXED),
        lambda: networks_torch_adm.ADMUNet(num_classes=CLASSES, **ADM),
    ),
}


def drawn(path: Any, like: Any) -> np.ndarray:
    """A parameter that has an effect everywhere and keeps activations of about size 1."""
    name, rng = path[-1].key, np.random.default_rng(zlib.crc32(str(path).encode()))
    values = rng.normal(size=like.shape).astype(np.float32)
    if name == "kernel":
        return values / np.float32(np.sqrt(np.prod(like.shape[:-1])))
    return {"scale": 1 + values / 5, "bias": values / 5}.get(name, np.float32(0.5) + values / 5)


def state(params: Any) -> dict[str, Any]:
    """Our parameters by the names and in the layouts of the other network."""
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        *names, last = (part.key for part in path)
        if names and names[0].startswith(("enc_", "dec_")):
            names = ["blocks", *names]
        if last == "kernel":  # (rows, columns, in, out) -> (out, in, rows, columns)
            leaf = np.moveaxis(leaf, (-1, -2), (0, 1))
        name = {"kernel": "weight", "scale": "weight", "embedding": "weight"}.get(last, last)
        found[".".join([*names, name])] = torch.tensor(np.array(leaf))
    return found


def both(kind: str) -> tuple[Any, Any, Any]:
    """(our network, our parameters, the other network with these)."""
    model, make = SMALL[kind]
    params = jax.tree_util.tree_map_with_path(drawn, shapes_of(model, (SIDE, SIDE, 3), LABEL)[0])
    other = make()
    given, own = state(params), other.state_dict()
    assert given.keys() == own.keys()
    other.load_state_dict({name: value.reshape(own[name].shape) for name, value in given.items()})
    return model, params, other.eval()


def inputs() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Images, times and labels, the null label among them."""
    x = np.random.default_rng(0).normal(size=(3, SIDE, SIDE, 3)).astype(np.float32)
    return x, np.float32([0.1, 0.7, 3.0]), np.int32([0, 2, CLASSES])


def answer(other: Any, x: np.ndarray, t: np.ndarray, label: np.ndarray) -> np.ndarray:
    """The other network's, NHWC."""
    images = torch.tensor(x).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    with torch.inference_mode():
        return np.asarray(other(images, torch.tensor(t), torch.tensor(label).long()).permute(0, 2, 3, 1))


@pytest.mark.parametrize("kind", SMALL)
def test_both_frameworks_answer_the_same(kind: str) -> None:
    model, params, other = both(kind)
    x, t, label = inputs()
    ours = np.asarray(model.apply({"params": params}, x, t, {"label": label}))
    theirs = answer(other.to(memory_format=torch.channels_last), x, t, label)
    assert np.abs(ours - theirs).max() < 1e-4 * np.abs(ours).max()


def test_weights_are_normalized_as_ours_are() -> None:
    model, params, other = both("edm2")
    other.normalize_weights()
    for name, value in state(model.normalize_weights(params)).items():
        np.testing.assert_allclose(other.state_dict()[name], value.reshape(other.state_dict()[name].shape), rtol=1e-5)


@pytest.mark.parametrize("kind", SMALL)
def test_a_step_is_one_graph_that_reaches_every_parameter(kind: str) -> None:
    other = both(kind)[2].train()
    x, t, label = inputs()
    whole = torch.compile(other, backend="eager", fullgraph=True)  # a break of the graph is an error
    whole(torch.tensor(x).permute(0, 3, 1, 2), torch.tensor(t), torch.tensor(label).long()).square().mean().backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in other.parameters())


@pytest.mark.parametrize(
    ("name", "model"),
    {
        "EDM2-S, 64x64": EDM2UNet(num_classes=1000, **edm2_unet.PRESETS["S"]),
        "ADM, ImageNet-64": ADMUNet(num_classes=1000, **adm_unet.PRESETS["imagenet64"]),
    }.items(),
)
def test_published_sizes_have_as_many_parameters(name: str, model: Any) -> None:
    networks_torch = pytest.importorskip("benchmarks.networks_torch")
    kind, sizes, _ = NETWORKS[name].peer
    with torch.device("meta"):
        peer = networks_torch.NETWORKS[kind](1, **sizes)
    theirs = sum(parameter.numel() for parameter in peer.model.parameters())
    assert theirs == parameters(shapes_of(model, (64, 64, 3), LABEL)[0])
