"""python -m archirf_jax.import_weights --source=dit --checkpoint=DiT-XL-2-256x256.pt --workdir=runs/dit-xl-2

Published weights as a run directory, which `sample` uses like one that was trained.
"""

from __future__ import annotations

import pathlib

import jax
from absl import flags, logging

from archirf_jax.errors import UserError
from archirf_jax.interop import files, sources
from archirf_jax.launch import cli, run_directory
from archirf_jax.tasks.classifier import Classifier
from archirf_jax.tasks.diffusion import Diffusion
from archirf_jax.tasks.published import load

SOURCE = flags.DEFINE_enum("source", None, list(sources.SOURCES), "what kind of weights these are", required=True)
CHECKPOINT = flags.DEFINE_string("checkpoint", None, ".safetensors, .pt or .pth file", required=True)
WORKDIR = flags.DEFINE_string("workdir", None, "run directory to make", required=True)

# What shapes do not always tell; the published value where the weights are a published model's.
HINTS = {
    "num_heads": flags.DEFINE_integer("num_heads", None, "attention heads", lower_bound=1),
    "num_head_channels": flags.DEFINE_integer("num_head_channels", None, "adm: channels of a head", lower_bound=1),
    "num_heads_upsample": flags.DEFINE_integer("num_heads_upsample", None, "adm: heads of the decoder", lower_bound=1),
    "channels_per_head": flags.DEFINE_integer("channels_per_head", None, "edm2: channels of a head", lower_bound=1),
    "attention_order": flags.DEFINE_enum("attention_order", None, ["legacy", "new"], "adm: layout of projections"),
    "num_res_blocks": flags.DEFINE_integer("num_res_blocks", None, "adm-classifier: blocks a level", lower_bound=1),
    "num_classes": flags.DEFINE_integer("num_classes", None, "classes, where labels have no null", lower_bound=1),
    "image_size": flags.DEFINE_integer("image_size", None, "pixels a side, where any would do", lower_bound=1),
    "norm": flags.DEFINE_enum("norm", None, ["layer", "rms"], "sd3: norm of the streams"),
    "schedule": flags.DEFINE_enum("schedule", None, ["linear", "cosine"], "adm: of beta"),
}


def main(argv: list[str]) -> None:
    """Read, check, write."""
    del argv
    workdir = pathlib.Path(WORKDIR.value).expanduser()
    if workdir.exists() and (not workdir.is_dir() or any(workdir.iterdir())):
        raise UserError(f"--workdir: {str(workdir)!r} exists and is not empty; give a new directory")
    hints = {name: flag.value for name, flag in HINTS.items() if flag.value is not None}
    tensors = files.read(pathlib.Path(CHECKPOINT.value).expanduser())
    config, params = load(SOURCE.value, dict(tensors), hints)
    run_directory.write(workdir, config, params, step=0)
    total = sum(leaf.size for leaf in jax.tree.leaves(params))
    logging.info("%s: %s with %.1f M parameters", workdir, config["model"]["name"], total / 1e6)
    use = {"classifier": Classifier.use, "diffusion": Diffusion.use}[config["task"]]
    logging.info("next: python -m archirf_jax.sample %s --out=samples.npz", use.format(workdir=workdir))


if __name__ == "__main__":
    cli.run(main)
