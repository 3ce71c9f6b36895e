"""A codebook that restarts and a projected discriminator of augmented images, as commands train and resume them."""

from __future__ import annotations

import pathlib
import shutil

import pytest

from configs import autoencoder_kl
from tests import running
from tests.commands import saved
from tests.commands.test_autoencoders import NETWORK, SMALL, TINY

STEPS = 6
PLAIN = {"model.mid_block_add_attention": False}
PROJECTED = {"name": "projected_discriminator", "width": 4}
FIELDS = (
    *("--config.objective.restart_below=0.3", "--config.objective.restart_decay=0.5"),
    *("--config.objective.adversarial_weight=0.1", f"--config.objective.discriminator={PROJECTED}"),
    "--config.objective.augment=('color','translation','cutout')",
)


def train(workdir: pathlib.Path, data_dir: pathlib.Path, features: pathlib.Path) -> None:
    file = f"--config={running.REPOSITORY / 'configs' / 'autoencoder_vq.py'}"
    start = [file, f"--workdir={workdir}", f"--config.data.dir={data_dir}", f"--config.steps={STEPS}"]
    assert running.call("main", *start, *SMALL, *NETWORK, *FIELDS, f"--config.frozen.features={features}") == 0


@pytest.mark.slow
def test_usage_frozen_features_and_heads_go_on_with_the_same_bytes(
    data_dir: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    features = tmp_path / "features"
    saved.save(autoencoder_kl, features, {**TINY, **PLAIN, "data.dir": str(data_dir)}, spread=0.05)
    train(tmp_path / "run", data_dir, features)
    copy = shutil.copytree(tmp_path / "run", tmp_path / "copy")
    shutil.rmtree(copy / "checkpoints" / str(STEPS))
    shutil.rmtree(features)  # the run has a copy
    train(copy, data_dir, features)
    running.assert_same_run(tmp_path / "run", copy, STEPS)
    rows = running.rows(copy)
    assert sum(row["codebook_restarts"] for row in rows) > 0
    assert any("usage" in name and "objective_state" in name for name in running.final_arrays(copy, STEPS))
