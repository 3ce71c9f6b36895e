"""The functions of a notebook leave what the commands leave."""

from __future__ import annotations

import pathlib

import numpy as np

import archirf_jax as arf


def test_a_run_that_was_trained_from_python_opens_by_itself(data_dir: pathlib.Path, tmp_path: pathlib.Path) -> None:
    data = arf.data.load("digits", dir=str(data_dir))
    model = arf.models.DiT(num_classes=10, patch_size=4, hidden_size=16, depth=1, num_heads=2)
    made = arf.train(model, arf.RectifiedFlow(), data, steps=2, batch_size=8, workdir=tmp_path / "run")
    again = arf.open(tmp_path / "run")
    assert again.step == 2 and again.config.identity.class_names == data.class_names
    assert again.config.identity.data_digest == data.digest and again.digest() == made.digest()
    how = {"labels": [3], "per_class": 2, "steps": 1, "guidance_scale": 1.0}
    np.testing.assert_array_equal(again.sample(**how), made.sample(**how))
