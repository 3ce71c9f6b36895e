"""Texts that a run draws: each has its images, other words make others, and a run without text refuses them."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

import archirf_jax as arf
from archirf_jax.data.tokenizer import FILE
from archirf_jax.data.vocabulary import of_words
from configs import dit_rf, scenes_rf
from tests import running
from tests.commands import saved

TEXTS = ("a red seven above a blue two", "a blue two above a red seven", "a red seven")
SMALL = {
    **{"model.network.hidden_size": 8, "model.network.depth": 1, "model.network.depth_single": 0},
    **{"model.network.num_heads": 2, "model.network.context_width": 8, "model.network.pooled_width": 8},
    **{"model.text.hidden_size": 8, "model.text.depth": 1, "model.text.num_heads": 2, "data.num_classes": 3},
    **{"sample.steps": 2, "data.image_size": 4},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    workdir = saved.save(scenes_rf, tmp_path_factory.mktemp("scenes") / "run", SMALL, spread=0.3).workdir
    (workdir / FILE).write_text(of_words(TEXTS, length=scenes_rf.WORDS).content)
    return workdir


def test_each_text_has_its_images_whatever_stands_beside_it(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n\n")
    several = ("sample", f"--workdir={run}", "--per_class=2", f"--prompts={tmp_path / 'texts.txt'}")
    running.call(*several, f"--out={tmp_path / 'all.npz'}")
    found = np.load(tmp_path / "all.npz")
    assert found["class_names"].tolist() == list(TEXTS) and found["labels"].tolist() == [0, 0, 1, 1, 2, 2]
    images = found["images"].reshape(3, 2, 4, 4, 3)
    one = arf.open(run).sample(prompts=[TEXTS[0]], per_class=2)
    np.testing.assert_array_equal(one, images[0])
    same_noise = arf.open(run).sample(prompts=[TEXTS[1]], per_class=2)  # of the first text
    assert np.any(same_noise != images[0])


def test_what_a_run_does_not_take_is_refused(run: pathlib.Path, tmp_path: pathlib.Path) -> None:
    digits = saved.save(dit_rf, tmp_path / "digits", saved.TINY_DIT).workdir
    (tmp_path / "none.txt").write_text("\n")
    assert running.refused("sample", f"--workdir={digits}", "--prompt=a seven").flag == "--prompt"
    assert running.refused("sample", f"--workdir={run}", "--prompt=a", "--labels=0").flag == "--labels"
    assert running.refused("sample", f"--workdir={run}", f"--prompts={tmp_path / 'none.txt'}").flag == "--prompts"
