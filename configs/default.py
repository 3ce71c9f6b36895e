"""Every field of a configuration, its unit and its default; and what all configurations say alike of a data set.

A configuration starts from `get_config` and sets what differs. In the groups model, process, objective, first_stage,
conditioners, frozen, networks, data.fields, sample.solver, sample.grid and sample.guidance the command line may add
fields that are not listed: those of the chosen file. A name with dots is a module of your own. None means "not".
"""

from collections.abc import Iterable

from ml_collections import ConfigDict

# Data, length and periods of a training on each data set.
DATA = {
    "digits": {"steps": 2000, "checkpoint.every_steps": 500, "sample.every_steps": 200},
    "mnist": {"data.name": "mnist", "data.image_size": 28, "steps": 20_000},
    "cifar10": {
        "data.name": "cifar10",
        "data.image_size": 32,
        "data.channels": 3,
        "data.flip": True,
        "steps": 200_000,
        "batch_size": 256,
        "checkpoint.every_steps": 5000,
        "sample.every_steps": 5000,
    },
    "openmoji": {
        "data.name": "openmoji",
        "data.image_size": 64,
        "data.channels": 3,
        "steps": 50_000,
        "checkpoint.every_steps": 2500,
        "sample.every_steps": 2000,
    },
    "imagenet64": {
        "data.name": "imagenet_resized/64x64",
        "data.image_size": 64,
        "data.channels": 3,
        "data.flip": True,
        "steps": 400_000,
        "batch_size": 256,
        "checkpoint.every_steps": 5000,
        "sample.every_steps": 10_000,
    },
}


def choose(variant: str, variants: Iterable[str]) -> str:
    """The variant.

    Raises:
        ValueError: it is not one of the variants; lists them.
    """
    if variant not in variants:
        raise ValueError(f"does not have this variant; choose one of {', '.join(variants)}")
    return variant


def get_config(data_set: str = "") -> ConfigDict:
    """The defaults, with the fields of one of the sets of DATA; locked: a name that is not listed is an error."""
    config = ConfigDict()
    config.task = "diffusion"  # what is trained: a file of archirf_jax/tasks
    config.seed = 0  # of parameters, order of examples, noise
    config.steps = 10_000  # optimizer steps
    config.batch_size = 128  # examples a step, on all devices together
    config.accumulation = 1  # parts in which a batch is computed, one after the other, to save memory
    config.steps_per_dispatch = 50  # most steps that the device runs before the host looks again

    # Run, trained or imported, whose weights the network begins with where they fit by name and shape; None = drawn.
    config.init_from = None

    config.data = data = ConfigDict()
    data.name = "digits"  # TFDS name, or folder:PATH
    data.dir = "data"  # folder of prepared TFDS sets
    data.split = "train"  # a split or a part of one, such as train[:80%]
    data.label_key = "label"  # TFDS feature with the class; None = no labels, one class
    data.image_size = 8  # pixels a side of what a network sees
    data.channels = 1  # 1 grey, 3 RGB
    data.num_classes = None  # None = as many as the set has; the run's saved configuration holds the number
    # Levels (lo, hi) of the files that become -1 and 1, those outside clipped: (0, 4095) for 12 bits in 16.
    data.value_range = None  # None = what the format says
    data.flip = False  # mirror images at random
    # None = the largest centred square, resized. "center", "random" = resized to cover the square, which is then cut
    # out, and the batch holds "size": original sides, top and left of the cut, sides of the square (SDXL).
    data.crop = None
    # Batches of differing shapes: (what sides are multiples of, largest aspect ratio), such as SDXL's (64, 4) with
    # image_size 1024, whose area all have about; None = squares alone.
    data.buckets = None
    data.device_cache_mib = 2048  # MiB; sets whose decoded images take at most this much lie on the device
    data.skip_unreadable = False  # train without the unreadable images of a folder instead of refusing
    data.fields = ConfigDict()  # further fields of a batch by name, such as {"caption": {"name": "my_lab.captions"}}

    config.first_stage = ConfigDict({"name": "image"})  # what is diffused: a file of archirf_jax/first_stages
    config.conditioners = ConfigDict({"label": {"name": "label"}})  # files of archirf_jax/conditioners; all are merged
    config.frozen = ConfigDict()  # name -> directory of a run that the task needs and never changes

    config.model = ConfigDict({"name": "dit"})  # a file of archirf_jax/models, and its attributes

    config.process = process = ConfigDict()
    process.name = "rectified_flow"  # a file of archirf_jax/processes, and its attributes
    process.path = "linear"  # from data to noise: linear (rectified flow), vp or gvp
    process.prediction = "velocity"  # what the network predicts: velocity, x0, eps or v
    process.time_scale = 1000.0  # the network is conditioned on time_scale * t
    process.towards = "noise"  # where network time and velocity point to; "data" for SiT

    config.objective = objective = ConfigDict()
    objective.name = "regression"  # a file of archirf_jax/objectives, and its attributes
    objective.time_distribution = (
        "logit_normal"  # training times: uniform, logit_normal, mode, cosmap; log_normal, steps
    )
    objective.logit_mean = 0.0  # mean of logit(t), for logit_normal
    objective.logit_std = 1.0  # standard deviation of logit(t), for logit_normal
    objective.mode_scale = 1.29  # weight of the middle, for mode
    objective.shift = 1.0  # SD3's timestep shift of the training times; 1 = none
    objective.loss_weighting = None  # weigh losses as if times came from this distribution
    objective.loss_space = None  # the loss compares x0, eps, v or velocity; None = what the network predicts
    objective.condition_dropout = 0.1  # share of examples trained without condition; {"a,b": 0.1, "c": 0.2} = by key

    config.optimizer = optimizer = ConfigDict()
    optimizer.name = "adamw"  # adamw, adam, lion, muon (of hidden matrices, AdamW of the rest) or schedule_free_adamw
    optimizer.learning_rate = 1e-4  # peak
    optimizer.b1 = 0.9  # decay of the first moment
    optimizer.b2 = 0.999  # decay of the second moment
    optimizer.eps = 1e-8  # added to the root of the second moment
    optimizer.moment_dtype = "float32"  # of the first moment: float32 or bfloat16
    optimizer.muon_momentum = 0.95  # decay of muon's moment
    optimizer.weight_decay = 0.0  # of the parameters that the next field names
    optimizer.weight_decay_mask = "(.*/)?kernel"  # regular expression of whole names, such as block_0/mlp/hidden/kernel
    optimizer.clip_norm = 1.0  # largest norm of the gradient; None = no clipping

    config.schedule = schedule = ConfigDict()
    schedule.name = "constant"  # after the warm-up: constant, cosine or linear down to 0 at the end, or inverse_sqrt
    schedule.warmup_steps = 1000  # steps of linear warm-up
    schedule.reference_steps = 70_000  # inverse_sqrt: steps before the rate falls (EDM2)

    config.ema = ema = ConfigDict()
    ema.decay = 0.9999  # of the parameters' moving average, which samples are drawn with
    ema.more_decays = ()  # of further averages, for `sample --ema`
    ema.sigma_rel = ()  # relative widths of power-function averages (EDM2), such as (0.05, 0.1), for `posthoc_ema`
    ema.snapshot_steps = 1000  # steps between two snapshots of those

    config.guard = guard = ConfigDict()
    guard.patience = 10  # updates in a row that may be skipped, because loss or gradient are not finite, before a stop
    guard.jump = None  # stop at a loss this many standard deviations above its running mean; None = never

    config.networks = ConfigDict()  # network's name -> {"optimizer": {...}, "schedule": ..., "ema": ..., "guard": ...}

    config.mesh = mesh = ConfigDict()
    mesh.data = None  # devices among which batches are divided; None = all that fsdp leaves
    mesh.fsdp = 1  # devices among which batches and parameters are divided

    config.log = ConfigDict()
    config.log.every_steps = 100  # steps between two rows of metrics, which are means over them
    config.log.tensorboard = True  # write TensorBoard events as well as metrics.jsonl

    config.checkpoint = checkpoint = ConfigDict()
    checkpoint.every_steps = 1000  # steps between two checkpoints
    checkpoint.keep = 3  # newest ones
    checkpoint.keep_best = 0  # and as many with the lowest `best_metric`
    checkpoint.best_metric = "loss"  # a name in metrics.jsonl
    checkpoint.keep_every = None  # and those of every multiple of so many steps
    checkpoint.required = True  # stop when one cannot be written, instead of training on

    config.sample = sample = ConfigDict()
    sample.every_steps = 1000  # steps between two sample grids
    sample.classes = 10  # rows of a grid, at most
    sample.per_class = 8  # columns of a grid
    sample.steps = 20  # solver steps
    sample.solver = ConfigDict({"name": "dpmpp_2m"})  # a file of archirf_jax/samplers/solvers, and its attributes
    sample.grid = ConfigDict({"name": "uniform"})  # times that are visited: see docs/samplers.md
    sample.guidance = guidance = ConfigDict()
    guidance.name = "classifier_free"  # or adaptive_projected, autoguidance
    guidance.scale = 1.5  # 1 = off
    guidance.interval = None  # two times between which guidance acts, such as (0.2, 0.8); None = always
    sample.threshold = None  # of predicted images: static (cut to [-1, 1]) or dynamic (Imagen)
    sample.hoist = True  # compute what is the same at every step, such as weights in bfloat16, once: takes more memory

    if data_set:
        config.update_from_flattened_dict(DATA[data_set])
    return config.lock()


def in_latents(config: ConfigDict, variant: str) -> None:
    """Train in the latents that an autoencoder made of a set's images beforehand, by prepare_data --autoencoder."""
    config.data.name = f"latents:data/latents_{variant}"
    config.data.flip = False  # True needs the latents of mirrored images, prepare_data --flip
    config.frozen.autoencoder = f"runs/ae_{variant}"
    config.first_stage = stage = ConfigDict({"name": "autoencoder"})
    stage.mean = None  # of the latents, one a channel; None = as the cache says
    stage.std = None  # likewise
    stage.sample = True  # draw latents from their distributions, where the autoencoder has them
    stage.decode_batch = 16  # images decoded at a time
    stage.decode_tile = None  # side of the tiles of latents that are decoded one after the other; None = whole images
    stage.decode_overlap = None  # latents that neighbouring tiles share; None = a quarter of a tile
