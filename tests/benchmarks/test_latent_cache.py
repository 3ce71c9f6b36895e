"""The benchmark of latent caches times steps of all kinds on a cache as it is made."""

from __future__ import annotations

import json
import pathlib
import sys

import pytest

from benchmarks import latent_cache
from configs import autoencoder, dit_latent_rf
from tests import running
from tests.commands import saved

TINY = {"model.block_out_channels": (8,), "model.patch_size": 2, "model.mid_block_add_attention": False}


@pytest.mark.slow
def test_steps_with_and_without_a_cache_are_timed(
    tmp_path: pathlib.Path, data_dir: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = saved.save(autoencoder, tmp_path / "ae", TINY).workdir
    places = (f"--autoencoder={decoder}", f"--out={tmp_path / 'latents'}")
    running.call("prepare_data", "--name=digits", f"--dir={data_dir}", *places)
    monkeypatch.setitem(dit_latent_rf.NETWORKS, "digits", {"hidden_size": 16, "depth": 1, "num_heads": 2})
    out = tmp_path / "found.json"
    flags = ("--variant=digits", places[0], f"--latents={tmp_path / 'latents'}", f"--out={out}")
    monkeypatch.setattr(sys, "argv", ["latent_cache", *flags, "--batch_size=8", "--rounds=1"])
    latent_cache.main()
    found = json.loads(out.read_text())
    own, archirf = found["autoencoders"]["own"], found["autoencoders"]["archirf"]
    assert found["cached_step_seconds"] > 0 and found["batch_size"] == 8
    assert 0 < own["million_parameters"] < archirf["million_parameters"]
    for each in (own, archirf):
        assert each["encoded_step_seconds"] / found["cached_step_seconds"] == pytest.approx(each["times_as_fast"])
