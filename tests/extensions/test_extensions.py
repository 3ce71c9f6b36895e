"""Extensions of a user's own train, resume with the same bytes and are sampled, without a change of the package."""

from __future__ import annotations

import pathlib
import shutil
import signal
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from archirf_jax.errors import UserError
from archirf_jax.launch import run_directory
from archirf_jax.launch.runs import open_run
from tests import running
from tests.extensions.captions import WORDS
from tests.extensions.text_encoder import TextEncoder
from tests.tasks.settings import moved

STEPS = 20
SMALL = (
    "--config.batch_size=16",
    "--config.model.hidden_size=16",
    "--config.model.num_heads=2",
    "--config.model.depth=1",
    "--config.schedule.name=constant",
    "--config.schedule.warmup_steps=5",
    "--config.log.every_steps=5",
    "--config.checkpoint.every_steps=10",
    "--config.sample.every_steps=1000",
    "--config.sample.per_class=1",
    "--config.sample.steps=2",
    "--config.steps_per_dispatch=4",
    "--config.log.tensorboard=False",
    "--config.mesh.data=1",
)
PATH = "tests.extensions"
EXTENSIONS = {
    "mean_flow": (
        f"--config.objective.name={PATH}.mean_flow",
        "--config.model.two_times=True",
        "--config.sample.guidance.scale=1",
        "--config.sample.solver.name=euler",
        "--config.sample.steps=1",
    ),
    "text": (
        f"--config.data.fields.caption.name={PATH}.captions",
        f"--config.conditioners.text.name={PATH}.text",
        "--config.frozen.encoder={encoder}",
        "--config.model.conditioning=cross_attention",
        "--config.model.context_width=16",
        "--config.objective.condition_dropout={'tokens,mask': 0.2, 'label': 0.1}",
    ),
    "autoencoder": (
        f"--config.task={PATH}.autoencoder",
        "--config.model.width=4",
        "--config.model.adversarial_weight=0.01",
        "--config.networks.discriminator.optimizer.learning_rate=1e-3",
    ),
    "low_res": (f"--config.conditioners.low_res.name={PATH}.low_res", "--config.model.low_res=True"),
    "distillation": (
        f"--config.objective.name={PATH}.distillation",
        "--config.objective.time_distribution=logit_normal",
        "--config.frozen.teacher={teacher}",
    ),
}
# What regression has and these objectives do not.
REPLACED = ("mean_flow",)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, whole_run: pathlib.Path) -> dict[str, pathlib.Path]:
    """Frozen runs: a text encoder with made-up weights, and a teacher that was trained."""
    folder = tmp_path_factory.mktemp("frozen")
    ids, mask = jnp.zeros((1, 4), jnp.int32), jnp.ones((1, 4), bool)
    params = moved(jax.eval_shape(TextEncoder(len(WORDS)).init, jax.random.key(3), ids, mask)["params"], scale=0.3)
    model = {"name": f"{PATH}.text_encoder", "vocabulary": len(WORDS), "width": 16}
    data = {"name": "captions", "dir": "data", "image_size": 8, "channels": 1, "num_classes": 10}
    config = {"task": "network", "data": data, "model": model}
    run_directory.write(folder / "encoder", config, {"model": params}, step=0)
    return {"encoder": folder / "encoder", "teacher": whole_run}


def arguments(
    name: str | None, workdir: pathlib.Path, data_dir: pathlib.Path, steps: int, runs: dict[str, pathlib.Path]
) -> list[str]:
    """The command line of a training of an extension; of the package's own network without a name."""
    own = [each.replace("{encoder}", str(runs.get("encoder"))) for each in EXTENSIONS.get(name or "", ())]
    own = [each.replace("{teacher}", str(runs.get("teacher"))) for each in own]
    file = "tests/extensions/config.py" + (f":{name}" if name in REPLACED else "")
    start = [f"--config={file}", f"--workdir={workdir}", f"--config.data.dir={data_dir}", f"--config.steps={steps}"]
    small = [each for each in SMALL if name != "autoencoder" or not each.startswith("--config.model.")]
    return [*start, *small, *own]


def train(
    workdir: pathlib.Path,
    data_dir: pathlib.Path,
    steps: int,
    name: str | None = None,
    runs: dict[str, pathlib.Path] | None = None,
) -> None:
    running.call("main", *arguments(name, workdir, data_dir, steps, runs or {}))


def drawn(workdir: pathlib.Path, out: pathlib.Path, *flags: str) -> Any:
    running.call("sample", f"--workdir={workdir}", f"--out={out}", *flags)
    return np.load(out)


class Trained(dict[str, pathlib.Path]):
    """A run of each extension, trained without a stop when it is first asked for."""

    def __init__(self, folder: pathlib.Path, data_dir: pathlib.Path, runs: dict[str, pathlib.Path]) -> None:
        super().__init__()
        self.folder, self.data_dir, self.runs = folder, data_dir, runs

    def __missing__(self, name: str) -> pathlib.Path:
        train(self.folder / name, self.data_dir, STEPS, name, self.runs)
        self[name] = self.folder / name
        return self[name]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, data_dir: pathlib.Path, runs: dict[str, pathlib.Path]) -> Trained:
    return Trained(tmp_path_factory.mktemp("extensions"), data_dir, runs)


@pytest.mark.slow
@pytest.mark.parametrize("name", EXTENSIONS)
def test_a_run_goes_on_from_its_checkpoint_with_the_same_bytes(
    name: str, trained: Trained, tmp_path: pathlib.Path, data_dir: pathlib.Path
) -> None:
    """Without the originals of its frozen runs, too, of which it has copies."""
    workdir = shutil.copytree(trained[name], tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints" / str(STEPS))
    gone = {frozen: tmp_path / frozen for frozen in ("encoder", "teacher")}
    with running.messages() as said:
        train(workdir, data_dir, STEPS, name, gone)
    assert any("checkpoint of step 10" in line for line in said)
    running.assert_same_run(trained[name], workdir, STEPS)


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_with_the_same_bytes(
    trained: Trained, tmp_path: pathlib.Path, data_dir: pathlib.Path
) -> None:
    workdir = tmp_path / "run"
    command = [sys.executable, "-m", "archirf_jax.main", *arguments("autoencoder", workdir, data_dir, STEPS, {})]
    with subprocess.Popen(command, cwd=running.REPOSITORY, env=running.environment()) as it:
        running.wait_for(lambda: 10 in running.steps_saved(workdir), it)
        it.send_signal(signal.SIGKILL)
    train(workdir, data_dir, STEPS, "autoencoder")
    running.assert_same_run(trained["autoencoder"], workdir, STEPS)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["mean_flow", "text", "low_res", "distillation"])
def test_sample_draws_images_of_the_run(name: str, trained: Trained, tmp_path: pathlib.Path) -> None:
    found = drawn(trained[name], tmp_path / "x.npz", "--labels=3,1", "--per_class=2", "--guidance_scale=1")
    assert found["images"].shape == (4, 8, 8, 1) and found["images"].dtype == np.uint8
    assert found["labels"].tolist() == [3, 3, 1, 1] and np.std(found["images"]) > 0


@pytest.mark.slow
def test_a_mean_flow_is_not_guided_from_outside(trained: Trained, tmp_path: pathlib.Path) -> None:
    with pytest.raises(UserError) as caught:
        drawn(trained["mean_flow"], tmp_path / "x.npz", "--guidance_scale=2")
    assert caught.value.field == "sample.guidance.scale"


@pytest.mark.slow
def test_text_is_what_images_depend_on(trained: Trained, tmp_path: pathlib.Path) -> None:
    rng, run = np.random.default_rng(0), open_run(trained["text"])
    rows = {
        "tokens": rng.normal(size=(2, 4, 16)).astype(np.float32),
        "mask": np.asarray([[True] * 4, [True, False, False, False]]),
        "label": np.asarray([3, 3]),
    }
    null = {"null_tokens": np.zeros((4, 16), np.float32), "null_mask": np.zeros(4, bool), "null_label": np.int64(10)}
    np.savez(tmp_path / "rows.npz", **rows, **null)
    found = drawn(trained["text"], tmp_path / "x.npz", f"--conditions={tmp_path}/rows.npz", "--per_class=1")
    assert found["images"].shape[0] == 2
    assert run.task.null_names == {"label", "tokens", "mask"}  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["text", "distillation"])
def test_the_frozen_runs_lie_in_the_run_and_open_without_the_originals(
    name: str, trained: Trained, runs: dict[str, pathlib.Path]
) -> None:
    run, frozen = open_run(trained[name]), {"text": "encoder", "distillation": "teacher"}[name]
    assert run.runs[frozen].directory == trained[name] / "frozen" / frozen
    original = open_run(runs[frozen])
    for ours, theirs in zip(jax.tree.leaves(run.frozen[frozen]), jax.tree.leaves(original.params), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert run.config.identity.frozen[frozen] == original.digest()


def test_an_autoencoder_reconstructs_an_image(trained: Trained, tmp_path: pathlib.Path) -> None:
    found = drawn(trained["autoencoder"], tmp_path / "x.npz", "--image=3")
    assert found["images"].shape == (2, 8, 8, 1) and np.any(found["images"][0] != found["images"][1])


def test_both_networks_are_trained_by_optimizers_of_their_own(trained: Trained) -> None:
    items = {name.split("'")[1] for name in running.final_arrays(trained["autoencoder"], STEPS)}
    kinds = ("params", "opt", "guard", "averages.ema")
    assert items == {f"{network}.{kind}" for network in ("generator", "discriminator") for kind in kinds}


@pytest.mark.slow
def test_an_upsampler_takes_a_given_low_resolution_image(trained: Trained, tmp_path: pathlib.Path) -> None:
    low = np.stack([np.full((4, 4, 1), value, np.float32) for value in (-1, 1)])
    rows = {"label": np.asarray([0, 0]), "low_res": low, "noise_level": np.zeros(2, np.float32)}
    np.savez(tmp_path / "low.npz", **rows)
    flags = (f"--conditions={tmp_path}/low.npz", "--per_class=1", "--guidance_scale=1")
    assert drawn(trained["low_res"], tmp_path / "x.npz", *flags)["images"].shape == (2, 8, 8, 1)


def test_a_nan_in_the_second_network_skips_both() -> None:
    from archirf_jax.launch.defaults import defaults
    from tests.extensions.autoencoder import build

    config = defaults().unlock()
    config.data.num_classes, config.model = 10, ConfigDict({"width": 4, "adversarial_weight": 0.01})
    task = build(config, {})
    state = jax.jit(task.init)(jax.random.key(0), {})
    image = jax.random.normal(jax.random.key(1), (16, 8, 8, 1))
    original, broken = task.losses, "discriminator"

    def losses(state: Any, frozen: Any, batch: Any, key: Any, network: str, train: bool = True) -> Any:
        drawn, fn = original(state, frozen, batch, key, network, train)
        if network != broken:
            return drawn, fn
        return drawn, lambda *args: (fn(*args)[0] * jnp.nan, *fn(*args)[1:])

    task.losses = losses  # type: ignore[method-assign]
    after, metrics = jax.jit(task.step)(state, {}, {"image": image}, jax.random.key(2))
    assert int(after.step) == 1 and float(metrics["skipped"][0]) == 1
    for name, network in state.networks.items():
        for field in ("params", "averages", "opt"):
            for old, new in zip(
                jax.tree.leaves(getattr(network, field)),
                jax.tree.leaves(getattr(after.networks[name], field)),
                strict=True,
            ):
                np.testing.assert_array_equal(old, new)
    assert int(after.networks[broken].guard.skipped) == 1
