"""What is wrong with digits is seen, and those of the default configuration are within the bounds."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from benchmarks.digits_quality import BOUNDS, measure
from tests import running


def real_digits() -> tuple[np.ndarray, np.ndarray]:
    digits = load_digits()
    return np.round(digits.images * 255 / 16).astype(np.uint8)[..., None], digits.target


def test_copies_of_the_training_images_are_right_and_varied_but_not_new() -> None:
    figures = measure(*real_digits())["samples"]
    assert figures["accuracy"] > 0.99
    assert figures["variety"] == pytest.approx(1, abs=0.01)
    assert figures["novelty"] < 0.05


def test_wrong_labels_averages_and_noise_are_seen() -> None:
    images, labels = real_digits()
    assert measure(images, (labels + 1) % 10)["samples"]["accuracy"] < 0.01
    means = np.stack([images[labels == label].mean(axis=0) for label in labels]).astype(np.uint8)
    assert measure(means, labels)["samples"]["variety"] < 0.01
    noise = np.random.default_rng(0).integers(0, 256, images.shape, dtype=np.uint8)
    figures = measure(noise, labels)["samples"]
    assert figures["accuracy"] < 0.2 and figures["novelty"] > 1.5


@pytest.mark.slow
def test_a_quarter_of_the_default_training_draw_digits_that_are_right_varied_and_new(
    data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    run, samples = tmp_path / "run", tmp_path / "samples.npz"
    config = (
        "--config=configs/dit_rf.py",
        f"--config.data.dir={data_dir}",
        "--config.steps=500",
        "--config.sample.every_steps=500",
    )
    person: dict[str, Any] = {"env": running.environment(XLA_FLAGS=""), "timeout": 1200}  # compiled as for a person
    trained = running.run("main", *config, f"--workdir={run}", **person)
    assert trained.returncode == 0, trained.stderr
    flags = ("--per_class=100", "--steps=16", "--guidance_scale=1.5", f"--out={samples}")
    drawn = running.run("sample", f"--workdir={run}", *flags, **person)
    assert drawn.returncode == 0, drawn.stderr
    with np.load(samples) as archive:
        figures = measure(archive["images"], archive["labels"])["samples"]
    assert all(figures[name] >= bound for name, bound in BOUNDS.items()), figures
