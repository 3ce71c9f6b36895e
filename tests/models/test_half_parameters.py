"""Parameters in half precision compute what their float32 copies compute: nothing is added up in half precision."""

from __future__ import annotations

import itertools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.models.autoencoder_kl import AutoencoderKL
from archirf_jax.models.bert import BERT
from archirf_jax.models.clip_text import CLIPText
from archirf_jax.models.latent_unet import LatentUNet
from archirf_jax.models.t5_encoder import T5Encoder

IDS = np.asarray([[1, 5, 7, 2]], np.int32)
TEXT: dict[str, Any] = dict(vocab_size=9, hidden_size=8, depth=1, num_heads=2, mlp_size=8)
IMAGE = np.linspace(-1, 1, 8 * 8 * 4, dtype=np.float32).reshape(1, 8, 8, 4)
CONDITION = {"tokens": np.ones((1, 3, 6), np.float32), "pooled": np.ones((1, 5), np.float32)}
CONDITION |= {"size": np.ones((1, 6), np.float32), "noise_level": np.ones(1, np.float32)}
WIDTHS: dict[str, Any] = dict(block_out_channels=(8,), layers_per_block=1, norm_num_groups=2)
UNET = LatentUNet(**WIDTHS, num_heads=2, context_width=6, pooled_width=5, size_width=4, noise_levels=3)
NETWORKS: list[tuple[nn.Module, tuple[Any, ...]]] = [
    (CLIPText(**TEXT, max_length=4, projection_size=3), (IDS,)),
    (T5Encoder(**TEXT, head_size=4), (IDS,)),
    (BERT(**TEXT, max_length=4, types=2), (IDS,)),
    (AutoencoderKL(**WIDTHS, latent_channels=2, out_channels=4), (IMAGE,)),
    (UNET, (IMAGE, np.ones(1, np.float32), CONDITION)),
]


@pytest.mark.parametrize(
    ("kind", "network", "inputs"),
    [(kind, *network) for kind, network in zip(itertools.cycle((jnp.float16, jnp.bfloat16)), NETWORKS, strict=False)],
    ids=lambda value: type(value).__name__,
)
def test_half_precision_is_a_matter_of_storage(kind: Any, network: nn.Module, inputs: tuple[Any, ...]) -> None:
    shapes = jax.eval_shape(network.init, jax.random.key(0), *inputs)
    random = np.random.default_rng(0)
    half = jax.tree.map(lambda leaf: random.normal(size=leaf.shape).astype(kind), shapes)
    whole = jax.tree.map(np.float32, half)
    ours, theirs = (jax.jit(network.apply)(params, *inputs) for params in (half, whole))
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert one.dtype == jnp.float32 and np.any(other)
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6 * float(np.max(np.abs(other))))
