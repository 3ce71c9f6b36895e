"""One run draws to a level of noise, and another one goes on from there to the data."""

from __future__ import annotations

import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from archirf_jax.launch import sheet_rows
from archirf_jax.launch.runs import Run, open_run
from archirf_jax.samplers.sample import sample
from archirf_jax.samplers.solvers.euler import Euler
from configs import dit_ddpm, dit_rf
from tests.commands import saved
from tests.commands.drawing import arrays, refused

TINY = {**saved.TINY_DIT, "sample.solver.name": "euler", "sample.steps": 5, "sample.guidance.scale": 2.0}
FEW = ("--labels=1,4", "--per_class=2")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return saved.save(dit_rf, tmp_path_factory.mktemp("runs") / "base", TINY).workdir


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Other weights, a scale of guidance of its own, and fewer steps."""
    changes = {**TINY, "sample.guidance.scale": 1.0}
    return saved.save(dit_rf, tmp_path_factory.mktemp("runs") / "other", changes, spread=0.4).workdir


@pytest.mark.parametrize("how", [("--solver=euler",), ("--solver=ddim", "--grid=shifted", "--shift=3", "--steps=7")])
def test_a_run_that_goes_on_with_its_own_images_draws_what_it_draws_without_a_break(
    how: tuple[str, ...], base: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    whole, labels = arrays(base, tmp_path, *FEW, *how)
    for handover in ("0.4", "0.7"):
        images, same = arrays(base, tmp_path, *FEW, *how, f"--refiner={base}", f"--handover={handover}")
        assert np.max(np.abs(images - whole)) <= 1 and same.tolist() == labels.tolist()
    assert whole.std() > 10


def test_where_nothing_is_left_to_the_refiner_the_base_draws_all(
    base: pathlib.Path, other: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    alone = arrays(base, tmp_path, *FEW)[0]
    np.testing.assert_array_equal(arrays(base, tmp_path, *FEW, f"--refiner={other}", "--handover=1e-6")[0], alone)


def denoised(run: Run, x: Any, grid: np.ndarray, **how: Any) -> Any:
    """x (4, 8, 8, 1) of the labels 1 and 4 after the steps of a grid, by the run's network."""
    task: Any = run.task
    denoise = task.denoiser(task.sampling.replace(**how), run.params, run.frozen)
    condition, keys = {"label": jnp.asarray([1, 1, 4, 4])}, jax.random.split(jax.random.key(0), 4)
    how = dict(grid=grid, solver=Euler(), start=jnp.asarray(x))
    return jax.jit(lambda: sample(keys, denoise, condition, task.shape, **how))()


def test_steps_that_start_above_the_handover_are_the_bases_and_all_others_the_refiners(
    base: pathlib.Path, other: pathlib.Path
) -> None:
    first, second = open_run(base), open_run(other)
    task: Any = first.task
    grid = task.sampling.make_grid(task.process)  # steps start at 1, 0.8, 0.6, 0.4 and 0.2
    asked = sheet_rows.rows(first, [1, 4], 2, 3)
    noise = jax.vmap(lambda key: task.process.prior(jax.random.split(key)[0], task.shape, 1.0))(asked.keys)
    handed = denoised(first, noise, grid[:3])
    few: dict[str, Any] = dict(labels=[1, 4], per_class=2, seed=3, latents=True)
    drawn = first.sample(**few, refiner=second, handover=0.4)
    np.testing.assert_allclose(drawn, denoised(second, handed, grid[3:]), atol=1e-4)
    led = first.sample(**few, refiner=second, handover=0.4, guidance_scale=2.0, refine={"guidance_scale": 3.0})
    np.testing.assert_allclose(led, denoised(second, handed, grid[3:], guidance_scale=3.0), atol=1e-4)
    assert np.max(np.abs(drawn - led)) > 0.01 and np.max(np.abs(drawn - first.sample(**few))) > 0.1
    coarser = first.sample(
        **few, refiner=second, handover=0.4, refine={"steps": 4}
    )  # its own grid, from where the base is
    np.testing.assert_allclose(coarser, denoised(second, handed, np.asarray([[0.4, 0.25], [0.25, 0.0]])), atol=1e-4)


def test_a_refiner_of_another_noise_shape_or_task_is_refused(
    base: pathlib.Path, other: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    wrong = {
        "noise": saved.save(dit_ddpm, tmp_path / "noise", saved.TINY_DIT),
        "shape": saved.save(dit_rf, tmp_path / "shape", {**TINY, "data.image_size": 16}),
    }
    for one in wrong.values():
        assert refused(base, f"--refiner={one.workdir}").flag == "--refiner"
    assert refused(base, f"--refiner={tmp_path / 'nowhere'}").flag == "--refiner"
    fewer = saved.save(dit_rf, tmp_path / "fewer", {**TINY, "data.num_classes": 3})
    assert refused(base, f"--refiner={fewer.workdir}", "--labels=4").flag == "--refiner"
    assert refused(base, f"--refiner={other}", "--handover=0.05", "--refine.steps=2", "--steps=40").flag == "--handover"


BAD = {
    "--handover=0": "--handover",
    "--handover=1": "--handover",
    "--handover=nan": "--handover",
    "--refine.threshold=hard": "--threshold",
    "--mask=left --image=3": "--refiner",
    "--image=3 --image_to=4 --solver=euler --guidance_scale=1": "--refiner",
    "--out=x.gif": "--refiner",
}


@pytest.mark.parametrize("arguments", BAD)
def test_what_does_not_go_with_a_refiner_is_refused(
    arguments: str, base: pathlib.Path, other: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    assert refused(base, f"--refiner={other}", *arguments.split(" ")).flag == BAD[arguments]


@pytest.mark.parametrize("flag", ["--handover=0.2", "--refine.steps=3"])
def test_a_handover_needs_a_refiner(flag: str, base: pathlib.Path) -> None:
    assert refused(base, flag).flag == flag.partition("=")[0].partition(".")[0]
