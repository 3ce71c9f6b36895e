"""A step that stopped a training is kept and computed again, and what went wrong in it is named."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.training import replay
from tests.training.test_loop import configured, trained
from tests.training.toys import Adversarial, Denoising, Feed


def stopped(folder: pathlib.Path, task: Any, *bad: int, **changes: Any) -> str:
    """What stopped a training whose batches at these steps are bad."""
    with pytest.raises(UserError) as caught:
        trained(folder, task, Feed(bad=bad), **changes)
    return str(caught.value)


@pytest.mark.slow
def test_the_network_that_went_wrong_is_named(tmp_path: pathlib.Path) -> None:
    assert "step 10" in stopped(tmp_path, Adversarial, 8, 9)
    text = replay.replay(Adversarial(configured(Adversarial)), tmp_path)
    assert "final_layer" in text or "block_0" in text
    report = replay.read_report(tmp_path)
    assert (report["network"], report["part"], report["step"]) == ("critic", 0, 10) and not np.isfinite(report["loss"])


def test_a_stopped_step_is_kept_and_replayed_unless_it_is_damaged(tmp_path: pathlib.Path) -> None:
    assert "step 5" in stopped(tmp_path, Denoising, 3, 4)
    task = Denoising(configured(Denoising))
    text, report = replay.replay(task, tmp_path), replay.read_report(tmp_path)
    assert (report["network"], report["part"], report["step"]) == ("net", 0, 5) and not np.isfinite(report["loss"])
    assert "block_0" in text
    path = tmp_path / replay.FOLDER / replay.BATCH
    content = path.read_bytes()
    for broken in (content[: len(content) // 2], b"", b"PK\x03\x04"):
        path.write_bytes(broken)
        with pytest.raises(UserError) as damaged:
            replay.replay(task, tmp_path)
        assert damaged.value.field == "replay" and "\n" not in str(damaged.value)
    with pytest.raises(UserError) as nothing:
        replay.replay(task, tmp_path / "elsewhere")
    assert nothing.value.field == "replay"


def test_a_replay_names_the_part_whose_batch_went_wrong(tmp_path: pathlib.Path) -> None:
    stopped(tmp_path, Denoising, 3, 4, accumulation=4)
    text = replay.replay(Denoising(configured(Denoising, accumulation=4)), tmp_path)
    report = replay.read_report(tmp_path)
    assert report["network"] == "net" and report["part"] == 2 and "block_0" in text


def test_a_replay_of_an_update_that_is_not_finite_says_so(tmp_path: pathlib.Path) -> None:
    fields = {"guard__patience": 1, "optimizer__learning_rate": 3e38, "optimizer__weight_decay": 1e9}
    with pytest.raises(UserError):
        trained(tmp_path, **fields)
    assert "update" in replay.replay(Denoising(configured(Denoising, **fields)), tmp_path)
    report = replay.read_report(tmp_path)
    assert (
        np.isfinite(report["loss"]) and np.isfinite(report["gradient_norm"]) and not np.isfinite(report["update_norm"])
    )
