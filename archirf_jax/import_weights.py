"""python -m archirf_jax.import_weights --source=dit --checkpoint=DiT-XL-2-256x256.pt --workdir=runs/dit-xl-2

Published weights as a run directory, which `sample` uses like one that was trained.
"""

from __future__ import annotations

import pathlib
import shlex
import types
from typing import Any

from archirf_jax.errors import UserError
from archirf_jax.launch.cli import Command
from archirf_jax.launch.flags import WORKDIR, Flag

SOURCES = (
    *("dit", "sit", "repa", "sd3", "adm", "adm-superres", "adm-classifier", "edm2"),
    *("sd15", "sd2", "sdxl", "sdxl-refiner", "sd-upscaler"),
    *("vae", "vae-compvis", "vq", "vq-compvis", "taesd", "lpips"),
    *("clip-text", "t5", "minilm"),
)
# Fields that shapes do not always determine; for weights of a published model its values are known.
HINTS = (
    Flag("num_heads", "attention heads", int, low=1, field="model.num_heads"),
    Flag("num_head_channels", "adm, sd, sdxl: channels of a head", int, low=1, field="model.num_head_channels"),
    Flag("num_heads_upsample", "adm: heads of the decoder", int, low=1, field="model.num_heads_upsample"),
    Flag("channels_per_head", "edm2: channels of a head", int, low=1, field="model.channels_per_head"),
    Flag("attention_order", "adm: layout of projections", choices=("legacy", "new"), field="model.attention_order"),
    Flag("num_res_blocks", "adm-classifier: blocks a level", int, low=1, field="model.num_res_blocks"),
    Flag("num_classes", "classes, where labels have no null", int, low=1, field="data.num_classes"),
    Flag("image_size", "pixels a side, where any would do", int, low=1, high=16_384, field="data.image_size"),
    Flag("norm", "sd3: norm of the streams", choices=("layer", "rms"), field="model.norm"),
    Flag("scaling_factor", "vae, vq: of latents", float, field="model.scaling_factor"),
    Flag("shift_factor", "vae: of latents", float, field="model.shift_factor"),
    Flag("norm_num_groups", "vae, vq, sd, sdxl: groups of norms", int, low=1, field="model.norm_num_groups"),
    Flag("activation", "clip-text: of perceptrons", choices=("quick_gelu", "gelu"), field="model.activation"),
    Flag("end_id", "clip-text: id that ends a text; default: the largest in it", int, low=0, field="model.end_id"),
    Flag("pad_id", "clip-text, t5, minilm: id that fills short texts", int, low=0, field="tokenizer.pad_id"),
    Flag("size_width", "sdxl: channels of each number of a size", int, low=2, field="model.size_width"),
    Flag("prediction", "sd, sdxl: what the network answers", choices=("eps", "v"), field="process.prediction"),
    Flag("schedule", "adm: of beta", choices=("linear", "cosine"), field="process.schedule"),
)
COMMAND = Command(
    __doc__,
    Flag("source", "what kind of weights these are", choices=SOURCES, required=True, example="dit"),
    Flag(
        *("checkpoint", "file, index or folder of weights, or for sd*: the folder of a whole pipeline", pathlib.Path),
        required=True,
        example="weights.safetensors",
    ),
    Flag("heads", "lpips: another file, of the heads, where the first holds the backbone alone", pathlib.Path),
    Flag("tokenizer", "clip-text, t5, minilm: tokenizer.json; default: the one beside the checkpoint", pathlib.Path),
    WORKDIR,
    *HINTS,
)


def attached(args: types.SimpleNamespace, config: dict[str, Any]) -> dict[str, bytes]:
    """The files that belong to the run: the tokenizer of a text encoder, whose group of `config` is filled in.

    Raises:
        UserError: a tokenizer that is needed and not there, or of another network, or not needed.
    """
    from archirf_jax.data import tokenizer
    from archirf_jax.launch.published_systems import tokenizer_of

    group = config.get("tokenizer")
    if group is None:
        if args.tokenizer is not None:
            raise UserError("tokenizer", str(args.tokenizer), f"is not for --source={args.source}; leave it out")
        return {}
    folder = args.checkpoint if args.checkpoint.is_dir() else args.checkpoint.parent
    if args.source == "clip-text" and args.tokenizer is None:
        found = tokenizer_of(folder, group, args.pad_id)
    else:
        found = tokenizer.read(args.tokenizer or folder / tokenizer.FILE, **group)
    config["tokenizer"] = tokenizer.described(found, config["model"]["vocab_size"])
    return {tokenizer.FILE: found.content.encode()}


def main(args: types.SimpleNamespace) -> None:
    """Read, check, write."""
    from archirf_jax.interop import published_folder
    from archirf_jax.launch import published_systems

    workdir = args.workdir
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise UserError("workdir", str(workdir), "exists and is not empty; give a new directory")
    hints = {flag.name: getattr(args, flag.name) for flag in HINTS if getattr(args, flag.name) is not None}
    if args.source in published_folder.PARTS and published_folder.is_system(args.checkpoint):
        check_system(args, hints, published_systems.taken(args.source))
        published_systems.write(args.source, args.checkpoint, workdir, hints)
    else:
        write(args, hints)
    report(workdir)


def check_system(args: types.SimpleNamespace, hints: dict[str, Any], taken: set[str]) -> None:
    """Raise a UserError for a flag that a whole pipeline does not take."""
    given = {flag.field or flag.name: hints[flag.name] for flag in HINTS if flag.name in hints.keys() - taken}
    given |= {name: str(getattr(args, name)) for name in ("tokenizer", "heads") if getattr(args, name) is not None}
    for field, value in given.items():
        raise UserError(field, value, "is not for the folder of a whole pipeline, whose own files say it; leave it out")


def write(args: types.SimpleNamespace, hints: dict[str, Any]) -> None:
    """The run directory of one network; a config.json in the folder of its weights says what shapes do not show."""
    from archirf_jax.interop import files, part_settings
    from archirf_jax.launch import run_directory
    from archirf_jax.launch.defaults import DEFAULTS
    from archirf_jax.tasks.published import load

    tensors = dict(files.read(args.checkpoint)) | (files.read(args.heads, "heads") if args.heads else {})
    settings = part_settings.beside(args.source, args.checkpoint)
    config, params = load(args.source, tensors, part_settings.hints(args.source, settings) | hints)
    part_settings.check_said(args.source, settings, config["model"])
    config = DEFAULTS | config
    run_directory.write(args.workdir, config, params, step=0, attached=attached(args, config))


def report(workdir: pathlib.Path) -> None:
    """Say what a run directory holds, and what can be done with it."""
    import jax
    from absl import logging

    from archirf_jax.launch.runs import open_run

    run = open_run(workdir)
    for where, one in [(str(workdir), run), *((f"{workdir}, {name}", each) for name, each in run.runs.items())]:
        total = sum(leaf.size for leaf in jax.tree.leaves(one.shapes or one.params))
        logging.info("%s: %s with %.1f M parameters", where, one.config.model.name, total / 1e6)
    use = getattr(run.task, "use", "").format(workdir=shlex.quote(str(workdir)))
    if use and run.runs:
        logging.info("next: python -m archirf_jax.sample %s --prompt=TEXT --per_prompt=1 --out=samples.png", use)
    elif use:
        own = use.replace("--image=0", "--image=FILE.png")  # an imported run has no images of its own
        logging.info("next: python -m archirf_jax.sample %s --out=samples.npz", own)
    else:
        logging.info("next: name it in the configuration of another run, as --config.frozen.NAME=%s", workdir)


if __name__ == "__main__":
    COMMAND.run(main)
