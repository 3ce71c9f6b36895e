"""`scenes`: 22,000 captioned pictures of one or two coloured digits, 16x16 on black, made of scikit-learn's digits."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import tensorflow_datasets as tfds
from PIL import Image

from archirf_jax.data.composition import CORNERS, SCENES, SIZE, compose, render


class Scenes(tfds.core.GeneratorBasedBuilder):
    """Label: the arrangement. Caption: one wording. Splits: `train`, without the withheld pairs, and `test`."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Coloured handwritten digits at 16x16 pixels on black, with captions, from scikit-learn.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(SIZE, SIZE, 3)),
                    "label": tfds.features.ClassLabel(names=list(CORNERS)),
                    "caption": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://archive.ics.uci.edu/dataset/80",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {split: self._generate_examples(split) for split in SCENES}

    def _generate_examples(self, split: str) -> Iterator[tuple[int, dict[str, Any]]]:
        from sklearn.datasets import load_digits  # a second or two, which reading the prepared set need not wait

        digits = load_digits()
        for i, scene in enumerate(compose(split, digits.target)):
            png = io.BytesIO()
            Image.fromarray(render(scene, digits.images)).save(png, "PNG")
            png.seek(0)
            yield i, {"image": png, "label": scene.arrangement, "caption": scene.caption}
