"""Files of conditions: numbers that a network does not know are refused."""

from __future__ import annotations

import pathlib
from typing import Any

import numpy as np
import pytest

from archirf_jax.errors import UserError
from archirf_jax.tasks.building import make_task
from archirf_jax.tasks.conditions import read
from tests.tasks import settings

WIDTH = 6
MODELS: dict[str, dict[str, Any]] = {
    "latent_unet": dict(block_out_channels=(8,), layers_per_block=1, num_heads=2, norm_num_groups=2, noise_levels=7),
    "dit": dict(hidden_size=8, depth=1, num_heads=2, conditioning="cross_attention"),
}


def given(path: pathlib.Path, name: str, levels: list[float]) -> Any:
    model = {"name": name, "context_width": WIDTH, "low_res": True} | MODELS[name]
    shapes = {"tokens": (2, WIDTH), "low_res": (4, 4, 1), "noise_level": ()}
    conditioners = {"given": {"name": "given", "shapes": shapes, "droppable": False}}
    changes = {"model": model, "conditioners": conditioners, "data.num_classes": 1}
    task: Any = make_task(settings.config(changes=changes, small={}))
    rows = len(levels)
    arrays: dict[str, Any] = {"tokens": np.ones((rows, 2, WIDTH)), "low_res": np.zeros((rows, 4, 4, 1))}
    np.savez(path, **arrays, noise_level=np.asarray(levels))
    return read(path, task, False)[0]["noise_level"].tolist()


@pytest.mark.parametrize(
    ("name", "inside", "outside"), [("latent_unet", [0, 6, 3], [7, -1]), ("dit", [0.0, 1.0], [1.5, -0.5, 20])]
)
def test_noise_levels_beyond_what_a_network_knows_are_refused(
    name: str, inside: list[float], outside: list[float], tmp_path: pathlib.Path
) -> None:
    assert given(tmp_path / "x.npz", name, inside) == inside
    for level in outside:
        with pytest.raises(UserError) as caught:
            given(tmp_path / "x.npz", name, [inside[0], level])
        assert (caught.value.field, caught.value.value) == ("conditions", "noise_level")
        assert f"{level:g}" in str(caught.value) and "\n" not in str(caught.value)
