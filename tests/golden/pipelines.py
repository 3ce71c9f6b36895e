"""The cases of whole systems: diffusers' pipelines of Stable Diffusion, from a text and noise to latents and images."""

from __future__ import annotations

import json
import pathlib
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from archirf_jax.interop import files
from archirf_jax.launch import prompts, published_systems
from archirf_jax.launch.companions import diffusion
from archirf_jax.launch.runs import Run, open_run
from archirf_jax.samplers.sample import sample
from tests.golden.adm import nhwc
from tests.golden.case import Case
from tests.golden.synthetic import synthetic

SIZE = [40.0, 24.0, 3.0, 5.0, 20.0, 12.0]  # of the output latents_size


def parameter(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The array of PART/NAME, by the rule for NAME."""
    return synthetic(name.partition("/")[2], shape)


def run(case: Case) -> dict[str, np.ndarray]:
    """What is drawn of each prompt, with no text and with another one to lead away from."""
    with tempfile.TemporaryDirectory() as place:
        folder = write(case, pathlib.Path(place) / "pipeline")
        published_systems.write(kind(case), folder, pathlib.Path(place) / "run", {})
        return drawn(open_run(pathlib.Path(place) / "run"), case)


def kind(case: Case) -> str:
    """The source of the case's system."""
    names = case.hyperparameters["configs"]
    if "transformer/config.json" in names:
        return "sd3"
    if "text_encoder_2/config.json" in names:
        return "sdxl"
    if "low_res_scheduler/scheduler_config.json" in names:
        return "sd-upscaler"
    return "sd2" if names["unet/config.json"]["use_linear_projection"] else "sd15"


def write(case: Case, folder: pathlib.Path, dtype: Any = np.float32) -> pathlib.Path:
    """The folder of a pipeline, as it is published: CLIP's tokenizers are a vocabulary and merges."""
    given = case.hyperparameters
    for name, settings in given["configs"].items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(settings))
    for tokenizer in [place for place in folder.glob("tokenizer*") if not (place / "tokenizer.json").is_file()]:
        (tokenizer / "vocab.json").write_text(json.dumps(given["vocab"]))
        (tokenizer / "merges.txt").write_text("\n".join(["#version: 0.2", *given["merges"], ""]))
    for part, tensors in tensors_of(case).items():
        stem = "model" if part.startswith("text") else "diffusion_pytorch_model"
        halved = {name: value.astype(dtype) for name, value in tensors.items()}
        files.write(halved, folder / part / f"{stem}.safetensors")
    return folder


def tensors_of(case: Case) -> dict[str, dict[str, np.ndarray]]:
    """The tensors of each part under their published names, which those of CLIP's encoders begin with text_model."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for path, value in case.params.items():
        part, _, name = path.partition("/")
        inner = part in ("text_encoder", "text_encoder_2") and not name.startswith("text_")
        found.setdefault(part, {})[f"text_model.{name}" if inner else name] = value
    return found


def drawn(run: Run, case: Case) -> dict[str, np.ndarray]:
    """The case's outputs as the run draws them from the case's noise."""
    settings, task = case.hyperparameters, diffusion(run)
    config = task.sampling.replace(steps=settings["steps"], guidance_scale=settings["guidance_scale"])
    grid, start = config.make_grid(task.process), jnp.asarray(nhwc(case.inputs["latents"]))
    batch, keys = prompts.batch_of(run, settings["prompts"]), jax.random.split(jax.random.key(0), len(start))

    if "low_res" in case.inputs:  # the noise on it, which the reference was handed, is that of these keys
        batch["low_res"] = jnp.asarray(nhwc(case.inputs["low_res"]))

    @jax.jit
    def draw(params: Any, frozen: Any, condition: Any, null: Any) -> Any:
        denoise = task.denoiser(config, params, frozen, null)
        how: dict[str, Any] = dict(grid=grid, solver=config.make_solver(), start=start)
        return sample(keys, denoise, condition, task.shape, **how)

    @jax.jit
    def read(frozen: Any, batch: Any) -> Any:
        return task.conditioner(frozen, batch, keys), task.conditioner.null(frozen)

    condition, usual = read(run.frozen, batch)
    given = {"latents": (condition, usual)}
    given["latents_negative"] = condition, prompts.null_of(run, settings["negative_prompt"])
    if "latents_size" in case.outputs:
        batch["size"] = jnp.tile(jnp.asarray(SIZE), (len(start), 1))
        given["latents_size"] = condition | task.conditioner.parts["size"](run.frozen, batch, keys), usual
    # Of numpy, so that all are drawn by one program, on whatever device their conditions were made.
    found = {name: draw(run.params, run.frozen, *jax.tree.map(np.asarray, each)) for name, each in given.items()}
    found["images"] = jnp.clip(task.decode(run.frozen, found["latents"]) / 2 + 0.5, 0, 1)
    arrays = {name: np.moveaxis(np.asarray(value), -1, 1) for name, value in found.items()}
    return arrays | {name: np.asarray(batch[name]) for name in case.outputs if name.endswith("ids")}
