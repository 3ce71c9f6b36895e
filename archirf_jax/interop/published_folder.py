"""The folder of a pipeline that diffusers saved: model_index.json, and a subfolder for each part of the system."""

from __future__ import annotations

import pathlib
import re
from typing import Any

from archirf_jax import untrusted
from archirf_jax.errors import UserError

INDEX, SETTINGS = "model_index.json", "config.json"
UNET, TRANSFORMER = "unet", "transformer"
SCHEDULER, LOW_RES_SCHEDULER = "scheduler", "low_res_scheduler"
SCHEDULER_SETTINGS = "scheduler_config.json"
# Kind of system -> frozen run of ours: its subfolder. Those of texts have a tokenizer beside them.
AUTOENCODER = ("autoencoder", "vae")
TEXT, TEXT_2, TEXT_3 = ("text", "text_encoder"), ("text_2", "text_encoder_2"), ("text_3", "text_encoder_3")
PARTS: dict[str, dict[str, str]] = {
    **{name: dict([AUTOENCODER, TEXT]) for name in ("sd15", "sd2", "sd-upscaler")},
    "sdxl": dict([AUTOENCODER, TEXT, TEXT_2]),
    "sdxl-refiner": dict([AUTOENCODER, ("text", TEXT_2[1])]),
    "sd3": dict([AUTOENCODER, TEXT, TEXT_2, TEXT_3]),
}
NETWORKS = {"sd3": TRANSFORMER}  # kind of system -> the subfolder of the network that draws, where it is no U-Net
OPTIONAL = {"sd3": ("text_3",)}  # what a system may lack: T5 was dropped in training so often that SD3 draws without
# Subfolder -> source of its weights.
KINDS = {"vae": "vae", "text_encoder": "clip-text", "text_encoder_2": "clip-text", "text_encoder_3": "t5"}
TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2", "text_encoder_3": "tokenizer_3"}
STEMS = ("diffusion_pytorch_model", "model")
# Full precision first; an index stands for several files.
ENDINGS = (
    *(".safetensors", ".safetensors.index.json"),
    *(".fp16.safetensors", ".safetensors.index.fp16.json", ".fp16.safetensors.index.json"),
)
SMALL = (".json", ".txt", ".model")  # files that are not weights
LARGEST_SMALL = 2**25  # bytes of such a file


def is_system(path: pathlib.Path) -> bool:
    """Whether a folder is a saved pipeline, and not the folder of a network alone."""
    return path.is_dir() and ((path / INDEX).is_file() or any((path / name).is_dir() for name in (UNET, TRANSFORMER)))


def network(source: str) -> str:
    """The subfolder of the network that draws, of a system of this kind."""
    return NETWORKS.get(source, UNET)


def parts(path: pathlib.Path, source: str) -> dict[str, str]:
    """Frozen run of ours: its subfolder, of a system of this kind, but for optional ones that the folder lacks.

    Raises:
        UserError: its index is damaged.
    """
    index = settings(path / INDEX)

    def absent(name: str) -> bool:
        return not (path / name).is_dir() or index.get(name, True) in (None, [None, None])

    optional = OPTIONAL.get(source, ())
    return {run: name for run, name in PARTS[source].items() if run not in optional or not absent(name)}


def check_complete(path: pathlib.Path, source: str) -> None:
    """Raise a UserError that names a subfolder which a system of this kind has and the folder lacks."""
    found = parts(path, source).values()
    needed = [network(source), *found, *(TOKENIZERS[part] for part in found if part in TOKENIZERS), SCHEDULER]
    needed += [LOW_RES_SCHEDULER] if source == "sd-upscaler" else []
    for name in needed:
        if not (path / name).is_dir():
            what = f"has no folder {name!r}, which a pipeline of the kind {source} has; give the whole folder"
            raise UserError("checkpoint", str(path), f"{what}, or that of the network {network(source)!r} alone")


def weights(folder: pathlib.Path) -> pathlib.Path:
    """The file of weights in a part's folder, or the index of several; in full precision where there are both.

    Raises:
        UserError: there is none.
    """
    for ending in ENDINGS:
        for stem in STEMS:
            if (folder / f"{stem}{ending}").is_file():
                return folder / f"{stem}{ending}"
    what = f"holds no {STEMS[0]}.safetensors or {STEMS[1]}.safetensors; save the pipeline with safe_serialization=True"
    raise UserError("checkpoint", str(folder), what)


def single(name: str) -> str:
    """The name of one file with all the tensors that an index of this name lists; other names as they are."""
    found = re.fullmatch(r"(.+?)\.safetensors\.index(\.\w+)?\.json", name)
    return f"{found[1]}{found[2] or ''}.safetensors" if found else name


def settings(path: pathlib.Path) -> dict[str, Any]:
    """The settings that a JSON file holds; {} where there is no such file.

    Raises:
        UserError: it is damaged.
    """
    if not path.is_file():
        return {}
    try:
        found = untrusted.read_json(path)
        if not isinstance(found, dict):
            raise untrusted.Unreadable("it is not a group of settings")
    except untrusted.Unreadable as e:
        raise UserError("checkpoint", str(path), f"is damaged: {e}") from e
    return found


def padding(folder: pathlib.Path) -> str | None:
    """The token that fills short texts, as the settings of a tokenizer's folder say; None where they do not."""
    about = settings(folder / "tokenizer_config.json")
    former = {} if "added_tokens_decoder" in about else settings(folder / "special_tokens_map.json")
    token = (about | former).get("pad_token")
    token = token.get("content") if isinstance(token, dict) else token
    return token if isinstance(token, str) else None


def small_files(path: pathlib.Path) -> dict[str, bytes]:
    """The files of a pipeline that are not weights, by their path in it."""
    found = {}
    for file in sorted([*path.glob("*"), *path.glob("*/*")]):
        inside = file.is_file() and file.suffix in SMALL and ".safetensors." not in file.name
        if inside and file.stat().st_size <= LARGEST_SMALL:
            found[file.relative_to(path).as_posix()] = file.read_bytes()
    return found
