"""What is counted of a network is what its authors count; every network is timed."""

from __future__ import annotations

import json
import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import pytest

from archirf_jax.models.dit import PRESETS, DiT
from archirf_jax.models.edm2_unet import EDM2UNet
from benchmarks import networks
from benchmarks.flops import gflops, parameters, shapes_of
from benchmarks.networks import LABEL, ROWS, Ours

SMALL = ROWS["dit"]._replace(
    model=DiT(num_classes=2, hidden_size=8, depth=1, num_heads=1), image_shape=(8, 8, 1), batch=2
)


def test_gflops_are_those_of_the_paper() -> None:
    # Peebles & Xie 2022, table 4: multiply-adds of a forward pass on 32x32x4 latents.
    model = DiT(num_classes=1000, learn_sigma=True, **PRESETS["S/4"])
    assert gflops(model, (32, 32, 4), LABEL) == pytest.approx(1.41, rel=0.02)


def test_constants_do_not_count_as_parameters() -> None:
    fields: dict[str, Any] = dict(
        model_channels=16, channel_mult=(1,), num_blocks=1, attention_levels=(), channels_per_head=16
    )
    model = EDM2UNet(num_classes=3, **fields)
    params = shapes_of(model, (8, 8, 3), LABEL)[0]
    constants = sum(
        leaf.size for path, leaf in jax.tree_util.tree_leaves_with_path(params) if path[-1].key.startswith("frozen_")
    )
    assert constants == 2 * 16
    assert parameters(params) == sum(leaf.size for leaf in jax.tree.leaves(params)) - constants


def test_a_step_that_is_timed_trains() -> None:
    ours = Ours(SMALL)
    before = jax.tree.map(jnp.copy, ours.params)
    assert ours.seconds("forward") > 0
    assert jax.tree.all(jax.tree.map(jnp.array_equal, before, ours.params))
    assert ours.seconds("step") > 0
    assert not jax.tree.all(jax.tree.map(jnp.array_equal, before, ours.params))


def test_the_comparison_runs(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "networks.json"
    monkeypatch.setattr(networks, "ROWS", {"dit": SMALL})
    monkeypatch.setattr(sys, "argv", ["networks", "--rounds=1", "--networks=dit", f"--out={out}"])
    networks.main()
    found = json.loads(out.read_text())["networks"]["dit"]
    assert found["largest_relative_error"] < 1e-4 and found["step_seconds"] > 0
