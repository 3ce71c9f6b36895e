"""What Orbax knows of a saved tree is what is there now."""

from __future__ import annotations

import pathlib
import shutil

import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest

from archirf_jax.training import items


def test_a_tree_that_is_written_anew_is_read_as_it_is_now(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "tree"
    with pytest.raises(ValueError, match="holds no tree"):
        items.shapes(folder)
    for shape in ((2, 3), (2, 5)):
        shutil.rmtree(folder, ignore_errors=True)
        with ocp.StandardCheckpointer() as writer:
            writer.save(folder, {"w": jnp.zeros(shape)})
        assert items.shapes(folder)["w"].shape == shape
        assert items.differences(folder, {"w": jnp.zeros(shape)}) == ""
