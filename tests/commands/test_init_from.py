"""Training that begins from weights as a person meets it: an imported network is tuned to the images of a folder."""

from __future__ import annotations

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from archirf_jax.interop import files
from archirf_jax.launch.runs import open_run
from tests import running
from tests.golden import cases

GOLDEN = pathlib.Path(cases.__file__).parent
NETWORK = (  # of the golden case, for the two classes of the folder
    *("--config.model.hidden_size=64", "--config.model.depth=3", "--config.model.patch_size=4"),
    *("--config.model.registers=0", "--config.model.qk_norm=None", "--config.data.image_size=16"),
    *("--config.data.channels=3", "--config.batch_size=8", "--config.schedule.name=constant"),
    *("--config.log.every_steps=3", "--config.checkpoint.every_steps=6", "--config.model.positions=rotary"),
)
STEPS, RATE = 12, 1e-3

SMALL_ADM = (
    *(
        "--config.model.model_channels=32",
        "--config.model.channel_mult=(1,)",
        "--config.model.attention_downsamples=()",
    ),
    *("--config.batch_size=8", "--config.mesh.data=1"),
)


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("imported")
    files.write(cases.load(GOLDEN / "dit_patch4.npz").params, folder / "dit.safetensors")
    flags = ("--source=dit", "--num_heads=4", "--image_size=16", f"--checkpoint={folder / 'dit.safetensors'}")
    running.call("import_weights", f"--workdir={folder / 'run'}", *flags)
    return folder / "run"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    folder, random = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for i in range(16):
        path = folder / ("dog" if i % 2 else "cat") / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(random.integers(0, 255, (16, 16, 3), np.uint8)).save(path)
    return folder


def tune(workdir: pathlib.Path, photos: pathlib.Path, run: pathlib.Path) -> list[str]:
    """A training on the folder from a run's weights; what it said."""
    rate = f"--config.optimizer.learning_rate={RATE}"
    flags = (f"--config.data.name=folder:{photos}", f"--init_from={run}", f"--config.steps={STEPS}", rate, *NETWORK)
    with running.messages() as said:
        assert running.train(workdir, photos.parent, *flags) == 0
    return said


@pytest.fixture(scope="module")
def tuned(imported: pathlib.Path, photos: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A run that began from weights which are gone since, and what it said in messages.txt."""
    folder = tmp_path_factory.mktemp("tuned")
    copy = shutil.copytree(imported, folder / "weights")
    said = tune(folder / "run", photos, copy)
    (folder / "run" / "messages.txt").write_text("\n".join(said))
    shutil.rmtree(copy)
    return folder / "run"


@pytest.mark.slow
def test_an_imported_network_is_tuned_to_a_folder(tuned: pathlib.Path, imported: pathlib.Path) -> None:
    """A step of Adam is about as long as the learning rate, so that what was taken is still close to its own."""
    said = (tuned / "messages.txt").read_text().splitlines()
    begun = next(line for line in said if str(tuned.parent / "weights") in line)
    assert "classes: 0 cat, 1 dog" in said
    assert "label_embedding/embedding (6, 64) there, (3, 64) here" in begun and "patch_embedding" not in begun
    theirs, ours = flat(open_run(imported).params), flat(open_run(tuned).params)
    taken = [name for name in ours if "label_embedding" not in name]
    assert len(taken) > 30
    for name in taken:
        assert np.max(np.abs(ours[name] - theirs[name])) <= 2 * STEPS * RATE, name
        assert np.any(ours[name] != theirs[name]) or not name.endswith("kernel']"), name


@pytest.mark.slow
def test_a_tuned_network_is_sampled_and_measured_by_the_names_of_the_folder(
    tuned: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    running.call("evaluate", f"--workdir={tuned}", "--metrics=loss")
    assert json.loads((tuned / "evaluations.jsonl").read_text())["class_names"] == ["cat", "dog"]
    out = tmp_path / "x.npz"
    running.call("sample", f"--workdir={tuned}", f"--out={out}", "--labels=dog", "--per_class=2", "--steps=2")
    with np.load(out) as arrays:
        assert arrays["images"].shape == (2, 16, 16, 3)
        assert list(arrays["class_names"][:2]) == ["cat", "dog"] and set(arrays["labels"]) == {1}


@pytest.mark.slow
def test_a_run_goes_on_without_the_weights_that_it_began_from(
    tuned: pathlib.Path, photos: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    cut = shutil.copytree(tuned, tmp_path / "cut")
    shutil.rmtree(cut / "checkpoints" / str(STEPS))
    tune(cut, photos, tuned.parent / "weights")
    running.assert_same_run(tuned, cut, STEPS)


def test_weights_that_do_not_fit_are_refused_before_a_run_is_made(
    imported: pathlib.Path, photos: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    adm = ("--config=configs/adm_ddpm.py", f"--config.data.name=folder:{photos}", *SMALL_ADM)
    for source, name in ((tmp_path / "nothing", "is not a run"), (imported, "dit there, adm_unet here")):
        refusal = running.refused("main", *adm, f"--workdir={tmp_path / 'run'}", f"--init_from={source}")
        assert refusal.flag == "--init_from" and name in refusal.line and len(refusal.line) < 300
    assert not (tmp_path / "run").exists()


def test_a_directory_of_weights_alone_is_not_trained_in(imported: pathlib.Path, photos: pathlib.Path) -> None:
    flags = (f"--config.data.name=folder:{photos}", *NETWORK)
    for more in ((), ("--change_config",)):
        refusal = running.refused("main", *running.small(imported, photos.parent, *flags, *more))
        assert refusal.flag == "--workdir" and "--init_from" in refusal.line


def flat(params: object) -> dict[str, np.ndarray]:
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
