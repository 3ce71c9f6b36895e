"""Every network that reads texts learns from scenes; a run shows captions in its previews and draws prompts."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from archirf_jax.contracts import Network, TrainState
from archirf_jax.data.composition import compose, render
from archirf_jax.data.feeds import make_feed
from archirf_jax.data.pipeline import load
from archirf_jax.tasks.building import make_task, resolve
from archirf_jax.visuals import pictures
from tests import running
from tests.commands import text_networks
from tests.commands.text_networks import NETWORKS, STEPS

SCENES = compose("train", load_digits().target, count=24)
PROMPTS = ["a red seven above a blue two", "a blue two"]
READING = ("'text'", "'context'", "pooled", "text_key_value", "key_value", "cross_attention")
PARTS = {"latent_unet": "size_embedding"}  # what reads its pooled vector


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder, digits = tmp_path_factory.mktemp("scenes") / "images", load_digits()
    folder.mkdir()
    for number, scene in enumerate(SCENES):
        Image.fromarray(render(scene, digits.images)).save(folder / f"{number:02}.png")
        (folder / f"{number:02}.txt").write_text(f"{scene.caption}\nanother caption")
    return folder


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "dit")) for n in NETWORKS])
def test_the_loss_reaches_all_that_reads_the_text(name: str, scenes: pathlib.Path) -> None:
    config = text_networks.get_config(name)
    config.data.name = f"folder:{scenes}"
    dataset = load(config.data)
    resolve(config, dataset.num_classes or 1)
    task: Any = make_task(config)
    random, key = np.random.default_rng(0), jax.random.key(0)
    shapes = jax.eval_shape(task.init_params, key, {})
    params = jax.tree.map(lambda leaf: np.float32(0.3 * random.normal(size=leaf.shape)), shapes)
    network = Network(params=params, averages={}, opt=())
    feed = make_feed(dataset, config)

    @jax.jit
    @jax.grad
    def slope(params: Any, chunk: Any) -> jax.Array:
        state = TrainState(step=jnp.int32(0), networks={"model": network})
        drawn, losses = task.losses(state, {}, feed.batch(chunk, 0, key), key, "model")
        return jnp.mean(losses(params, drawn, 0)[0])

    leaves = jax.tree_util.tree_leaves_with_path(slope(params, feed.chunk(0, 1)[0]))
    texts = of_text({jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}, PARTS.get(name, "pooled"))
    feed.close()
    # One vector that is added to all keys changes no softmax over them, and an embedding has rows of absent words.
    still = {path for path, leaf in texts.items() if not np.any(leaf) and "'key'" not in path}
    assert len(texts) > 15 and not still, still


def of_text(leaves: dict[str, np.ndarray], pooled: str = "pooled") -> dict[str, np.ndarray]:
    """Those by path that have to do with texts; `pooled` names what reads a pooled vector."""
    return {path: leaf for path, leaf in leaves.items() if any(word in path for word in (*READING, pooled))}


@pytest.mark.slow
def test_a_run_learns_to_read_draws_prompts_and_shows_captions(scenes: pathlib.Path, tmp_path: pathlib.Path) -> None:
    run = tmp_path / "run"
    config = f"--config={text_networks.__file__}:mmdit"
    assert running.call("main", config, f"--workdir={run}", f"--config.data.name=folder:{scenes}") == 0
    # From its last step but one to its last: fresh gates of zero let nothing through at first.
    before, after = (of_text(running.final_arrays(run, step)) for step in (STEPS - 1, STEPS))
    texts = [path for path in after if "model.params" in path]
    still = [path for path in texts if np.array_equal(before[path], after[path]) and "'key'" not in path]
    assert len(texts) > 15 and not still, still
    asked = [f"--prompt={text}" for text in PROMPTS]
    sampling = ("sample", f"--workdir={run}", *asked, "--per_prompt=2", "--guidance_scale=3")
    running.call(*sampling, f"--out={tmp_path / 'x.npz'}")
    drawn = np.load(tmp_path / "x.npz")
    assert drawn["images"].shape == (4, 16, 16, 3) and drawn["prompts"].tolist() == [p for p in PROMPTS for _ in "12"]
    check_previews(run)


def check_previews(run: pathlib.Path) -> None:
    """Previews have the first different captions beside their rows, at every step, as sheets of prompts have theirs."""
    captions = list(dict.fromkeys(scene.caption for scene in SCENES))[:3]
    named, bare = (pictures.grid(np.zeros((3, 2, 16, 16, 3), np.uint8), names) for names in (captions, ()))
    width = named.shape[1] - bare.shape[1]
    found = [pictures.load_png(path) for path in sorted((run / "samples").glob("*.png"))]
    assert len(found) == 2 and width > 40
    for picture in found:
        assert picture.shape == named.shape
        np.testing.assert_array_equal(picture[:, :width], named[:, :width])
        assert np.all(picture[:, width:].std(axis=(0, 1)) > 0)
    with Image.open(run / "denoising.gif") as frames:
        assert frames.size == (named.shape[1], named.shape[0])
