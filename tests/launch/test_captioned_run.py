"""A run on captions holds their tokenizer: it opens and goes on as before, and other texts become the same tokens."""

from __future__ import annotations

import pathlib

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

import archirf_jax as arf
from archirf_jax.data.pipeline import load
from archirf_jax.data.tokenizer import FILE
from archirf_jax.errors import UserError

TEXTS = 2 * ("a red square", "a blue circle", "a red circle", "a blue square")


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    return captioned(tmp_path / "images", TEXTS)


def captioned(folder: pathlib.Path, texts: tuple[str, ...]) -> pathlib.Path:
    folder.mkdir()
    for number, text in enumerate(texts):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(text)
    return folder


def train(folder: pathlib.Path, workdir: pathlib.Path) -> arf.Run:
    data = arf.data.folder(str(folder), size=8, captions=True)
    model = arf.models.DiT(num_classes=1, patch_size=4, hidden_size=16, depth=1, num_heads=2)
    return arf.train(model, arf.RectifiedFlow(), data, steps=2, batch_size=8, workdir=workdir)


@pytest.mark.slow
def test_a_run_from_python_opens_by_itself_keeps_its_tokenizer_and_goes_on(
    folder: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    made = train(folder, tmp_path / "run")
    opened = arf.open(tmp_path / "run")
    assert opened.step == 2 and opened.config.identity.class_names == made.data.class_names
    assert opened.config.identity.data_digest == made.data.digest and opened.digest() == made.digest()
    how = {"labels": [0], "per_class": 2, "steps": 1, "guidance_scale": 1.0}
    np.testing.assert_array_equal(opened.sample(**how), made.sample(**how))
    assert made.data.tokenizer.content == (tmp_path / "run" / FILE).read_text()
    again = train(folder, tmp_path / "run")
    jax.tree.map(np.testing.assert_array_equal, again.params, made.params)
    others = captioned(tmp_path / "others", ("a green circle", "a red blue square"))
    data = arf.open(tmp_path / "run").config.data.copy_and_resolve_references().unlock()
    data.update(ConfigDict({"name": f"folder:{others}"}))
    dataset = load(data)
    assert dataset.tokenizer is not None and dataset.tokenizer.digest == made.data.tokenizer.digest
    assert dataset.arrays is not None and dataset.arrays["ids"][0, 0, 1] == 1  # "green", which the run does not know
    (folder / "3.txt").write_text("a red square")
    with pytest.raises(UserError) as caught:
        train(folder, tmp_path / "run")
    assert caught.value.field == "workdir"
