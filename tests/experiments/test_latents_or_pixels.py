"""The flow in pixels has the size and the training of the flow in latents, and the script runs at reduced size."""

from __future__ import annotations

import json
import pathlib

import pytest
from ml_collections import ConfigDict
from PIL import Image

from configs import autoencoder, dit_latent_rf
from tests.experiments import reduced

SMALL = {"SET": "digits", "LATENT_STEPS": "4", "PIXEL_STEPS": "3", "SCALES": "1"}


@pytest.mark.slow
def test_the_script_trains_measures_and_draws(
    data_dir: pathlib.Path, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, whole_flow = autoencoder.get_config, dit_latent_rf.get_config

    def small(variant: str) -> object:
        config = whole(variant).unlock()
        config.steps = 4
        config.model = ConfigDict({"name": "autoencoder_tiny", "width": 8, "latent_channels": 4})
        config.model.num_encoder_blocks = config.model.num_decoder_blocks = (0, 0)
        config.objective.update(std_weight=0.0, mean_weight=0.0)
        config.schedule.warmup_steps = 1
        return config

    def small_flow(variant: str) -> object:
        config = whole_flow(variant)
        config.schedule.warmup_steps = config.sample.steps = 2
        return config

    monkeypatch.setattr(autoencoder, "get_config", small)
    monkeypatch.setattr(dit_latent_rf, "get_config", small_flow)
    monkeypatch.setitem(dit_latent_rf.NETWORKS, "digits", reduced.TINY | {"patch_size": 1})
    monkeypatch.setenv("AUTOENCODER", str(tmp_path / "autoencoder"))
    monkeypatch.setenv("CACHE", str(tmp_path / "cache"))
    reduced.run("latents_or_pixels", SMALL, data_dir, tmp_path, monkeypatch)
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert [(row["kind"], row["scale"]) for row in results["samples"]] == [("latents", 1), ("pixels", 1)]
    assert all(row["frechet"] > results["frechet_of_held_out_images"] > 0 for row in results["samples"])  # untrained
    assert min(results["seconds_of_training"].values()) > 0
    written = {kind: json.loads((tmp_path / f"runs/{kind}/config.json").read_text()) for kind in ("latents", "pixels")}
    latents, pixels = written["latents"], written["pixels"]
    for group in ("process", "objective", "optimizer", "schedule", "ema"):
        assert latents[group] == pixels[group]
    side = 4  # of the latents, one token each
    assert pixels["data"]["image_size"] == side * pixels["model"].pop("patch_size")
    assert latents["model"].pop("patch_size") == 1
    assert latents["model"] == pixels["model"]
    with Image.open(tmp_path / "out/samples.png") as picture:
        assert min(picture.size) > 100
