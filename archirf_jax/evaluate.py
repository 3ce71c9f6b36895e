"""python -m archirf_jax.evaluate --workdir=runs/dit_rf [--features=pt_inception-2015-12-05.pth]

Measure a run's average: its loss on images of a data set, and its samples compared with them. Figures are printed, and
added as one line of JSON to WORKDIR/evaluations.jsonl. docs/evaluation.md says what each means.
"""

from __future__ import annotations

import pathlib
import types

from archirf_jax.errors import UserError
from archirf_jax.launch.cli import Command, write_json
from archirf_jax.launch.flags import JSON, Flag
from archirf_jax.launch.run_flags import RUN, SAMPLING, VALUE_RANGE, guides_of, how, opened, value_range

# The real images; defaults are those of the run's config.data.
DATA = {
    "data": "name",
    "data_dir": "dir",
    "split": "split",
    "label_key": "label_key",
    "skip_unreadable": "skip_unreadable",
}
# Flags that mean nothing to other metrics.
OWN = {
    ("samples", "frechet"): ("features",),
    ("samples",): ("repeats", "conditions", *(flag.name for flag in SAMPLING)),
    ("bits_per_dim",): ("levels", "ode_steps", "probes"),
}
COMMAND = Command(
    __doc__,
    *RUN,
    *SAMPLING,
    JSON,
    Flag(
        *("metrics", "some of loss, samples, bits_per_dim; of autoencoders loss, psnr, ssim, ms_ssim, lpips, frechet"),
        list,
    ),
    Flag("features", "features to compare by: pixels, Inception's weights, a classifier's run, a Python file"),
    Flag("save_images", "autoencoders: .npz file for images and reconstructions", pathlib.Path),
    Flag("images", "how many to draw and measure; default: as many as the data has, at most 50000", int, low=1),
    Flag("repeats", "sets of samples to draw, of the seeds from --seed on", int, 1, low=1),
    Flag("levels", "bits_per_dim: grey levels of the data, at even distances", int, 256, low=2),
    Flag("ode_steps", "bits_per_dim: steps of the ODE, an even number", int, 200, low=2),
    Flag("probes", "bits_per_dim: random vectors of the trace, 2 or more", int, 8, low=2),
    Flag("data", "TFDS name or folder:PATH of the real images; default: those of the run", field="data.name"),
    Flag("data_dir", "folder of prepared TFDS sets", field="data.dir"),
    Flag("split", "TFDS split or part of one, such as test or train[80%:]", field="data.split"),
    Flag("label_key", "TFDS feature with the class", field="data.label_key"),
    Flag("skip_unreadable", "leave unreadable images of a folder out", bool, field="data.skip_unreadable"),
    VALUE_RANGE,
)


def main(args: types.SimpleNamespace) -> None:
    """Open the run, measure, report."""
    from absl import logging

    from archirf_jax.files import check_output, check_rows
    from archirf_jax.launch import companions, evaluation

    run = opened(args)
    path = args.workdir / evaluation.FILE
    check_rows(path, "workdir")
    wanted = evaluation.metrics_of(run, args.metrics)
    for metrics, own in OWN.items():
        for name in own:
            if name in args.given and not set(metrics) & set(wanted):
                raise UserError(f"--{name}: belongs to --metrics={metrics[0]}; leave it out")
    if args.save_images is not None:
        if not hasattr(run.task, "reconstruct"):
            raise UserError("--save_images: belongs to autoencoders, whose reconstructions it keeps; leave it out")
        check_output(args.save_images, "save_images", ".npz")
    changes = how(args)
    config = run.task.sampling.replace(**changes) if "samples" in wanted else None  # type: ignore[attr-defined]
    data = {field: getattr(args, flag) for flag, field in DATA.items() if getattr(args, flag) is not None}
    if args.value_range is not None:
        data["value_range"] = value_range(args.value_range)
    row = evaluation.evaluate_run(
        run,
        wanted,
        features=args.features or evaluation.PIXELS,
        images=args.images,
        repeats=args.repeats,
        levels=args.levels,
        ode_steps=args.ode_steps,
        probes=args.probes,
        data=data,
        config=config,
        guides=guides_of(args, run, config) if config else companions.ALONE,
        conditions=args.conditions and pathlib.Path(args.conditions),
        seed=args.seed,
        batch_size=args.batch_size,
        save_images=args.save_images,
    )
    logging.info("added to %s", path)
    if args.json:
        write_json(row)


if __name__ == "__main__":
    COMMAND.run(main)
