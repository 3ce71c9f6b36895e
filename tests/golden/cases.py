"""Reading golden cases and comparing: a case is an .npz with `meta` (JSON), `in/*`, `out/*` and `param/*` arrays."""

from __future__ import annotations

import functools
import json
import pathlib
from collections.abc import Callable

import jax
import numpy as np

from tests.golden import (
    adm,
    autoencoders,
    dit,
    edm2,
    edm2_training,
    gaussian,
    inception,
    latent_unet,
    lpips,
    mmdit,
    patchgan,
    pipelines,
    schedulers,
    text,
)
from tests.golden.case import Case, UnsupportedSource
from tests.golden.synthetic import synthetic

# The start of a case's `source` line -> (function of the case, largest relative error that counts as agreement).
SOURCES: dict[str, tuple[Callable[[Case], dict[str, np.ndarray]], float]] = {
    "facebookresearch/DiT models.py DiT": (dit.run, 1e-4),
    "Stability-AI/sd3.5 mmditx.py MMDiTX": (mmdit.run, 1e-4),
    "openai/guided-diffusion unet.py UNetModel": (adm.unet, 1e-4),
    "openai/guided-diffusion unet.py SuperResModel": (adm.unet, 1e-4),
    "openai/guided-diffusion unet.py EncoderUNetModel": (adm.classifier, 1e-4),
    "diffusers 0.42 AutoencoderKL": (autoencoders.kl, 1e-4),
    "diffusers 0.42.1 AutoencoderKL": (autoencoders.kl, 1e-4),
    "diffusers 0.42.1 AutoencoderTiny": (autoencoders.tiny, 1e-4),
    "diffusers 0.42.1 VQModel": (autoencoders.vq, 1e-4),
    **{f"diffusers 0.42.1 {name}": (schedulers.run, 1e-4) for name in schedulers.READERS},
    "diffusers 0.42.1 UNet2DConditionModel": (latent_unet.run, 1e-4),
    "diffusers 0.42.1 StableDiffusionPipeline": (pipelines.run, 1e-4),
    "diffusers 0.42.1 StableDiffusionXLPipeline": (pipelines.run, 1e-4),
    "diffusers 0.42.1 StableDiffusionUpscalePipeline": (pipelines.run, 1e-4),
    "diffusers 0.42.1 StableDiffusion3Pipeline": (pipelines.run, 1e-4),
    "openai/guided-diffusion gaussian_diffusion.py + respace.py": (gaussian.run, 1e-4),
    "transformers 5.24.0 CLIPTextModel": (text.clip, 1e-4),
    "transformers 5.24.0 T5EncoderModel": (text.t5, 1e-4),
    "transformers 5.24.0 BertModel": (text.minilm, 1e-4),
    "NVlabs/edm2 networks_edm2.py Precond": (edm2.run, 1e-4),
    "NVlabs/edm2 phema.py and training_loop.py": (edm2_training.run, 1e-6),
    "patch discriminator of pix2pix": (patchgan.run, 1e-4),
    "lpips 0.1.4": (lpips.run, 1e-4),
    "pytorch-fid 0.3.0 InceptionV3": (inception.run, 2e-3),
    "pytorch-fid 0.3.0 calculate_frechet_distance": (inception.frechet, 1e-4),
}
# The start of a case's `source` line -> the rule for parameters that are not stored, where it is another one.
RULES: dict[str, Callable[[str, tuple[int, ...]], np.ndarray]] = {
    "NVlabs/edm2": edm2.parameter,
    "lpips 0.1.4": lpips.parameter,
    "diffusers 0.42.1 StableDiffusion": pipelines.parameter,
}


def load(path: pathlib.Path) -> Case:
    """The case in `path`, its synthetic parameters filled in; its arrays cannot be written to."""
    status = path.stat()
    return _load(path, status.st_mtime_ns, status.st_size)


@functools.lru_cache(maxsize=16)  # many tests ask for the same one, and parameters take a while to make
def _load(path: pathlib.Path, *state: int) -> Case:
    del state
    with np.load(path, allow_pickle=False) as archive:
        arrays = {key: archive[key] for key in archive.files}
    meta = json.loads(str(arrays.pop("meta")))

    def part(prefix: str) -> dict[str, np.ndarray]:
        return {key.removeprefix(prefix): value for key, value in arrays.items() if key.startswith(prefix)}

    rule = next((rule for prefix, rule in RULES.items() if meta["source"].startswith(prefix)), synthetic)
    params = {name: rule(name, tuple(shape)) for name, shape in meta.get("synthetic", {}).items()} | part("param/")
    for array in (arrays | params).values():
        array.flags.writeable = False
    return Case(meta["source"], meta["hyperparameters"], part("in/"), part("out/"), params)


def relative_error(ours: np.ndarray, theirs: np.ndarray) -> float:
    """max |ours - theirs| / max |theirs|; infinite where the shapes differ or a value is not finite."""
    if ours.shape != theirs.shape or not np.all(np.isfinite(ours)) or not np.all(np.isfinite(theirs)):
        return float("inf")
    distance, scale = float(np.max(np.abs(ours - theirs))), float(np.max(np.abs(theirs)))
    return distance / scale if scale else (0.0 if distance == 0 else float("inf"))


def compare(case: Case) -> tuple[float, float]:
    """(largest relative error over all outputs, the error allowed); accelerators multiply in full float32."""
    for prefix, (run, tolerance) in SOURCES.items():
        if case.source.startswith(prefix):
            with jax.default_matmul_precision("highest"):
                ours = run(case)
            return max(relative_error(ours[name], theirs) for name, theirs in case.outputs.items()), tolerance
    raise UnsupportedSource(f"unsupported source {case.source!r}; supported: {', '.join(SOURCES)}")
