"""Every field of a configuration, its unit and its default. A configuration starts from here and sets what differs."""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    """The defaults, locked: a name that is not listed here is an error. `model` is filled by each configuration."""
    config = ConfigDict()
    config.task = "diffusion"  # what is trained: a file of archirf_jax/tasks
    config.seed = 0  # of parameters, order of examples, noise
    config.steps = 10_000  # optimizer steps
    config.batch_size = 128  # images a step
    config.accumulation = 1  # parts that a batch is computed in, one after the other, to save memory
    config.steps_per_dispatch = 50  # most steps the device runs between two words from the host

    config.data = data = ConfigDict()
    data.name = "digits"  # TFDS name, or folder:PATH
    data.dir = "data"  # folder of prepared TFDS sets
    data.split = "train"  # TFDS split or part of one, such as train[:80%]
    data.label_key = "label"  # TFDS feature with the class; "" = no labels, one class
    data.image_size = 8  # pixels a side after crop and resize
    data.channels = 1  # 1 grey, 3 RGB
    data.num_classes = 0  # 0 = as many as the set has; the run's saved configuration holds the number
    data.flip = False  # mirror images at random
    data.resident_mib = 2048  # sets whose decoded images take at most this many MiB lie on the device
    data.skip_unreadable = False  # train without the unreadable images of a folder instead of refusing

    config.model = ConfigDict()
    config.model.name = "dit"  # a file of archirf_jax/models; the other fields are its attributes

    config.process = process = ConfigDict()
    process.name = "rectified_flow"  # a file of archirf_jax/processes; the other fields are its attributes
    process.path = "linear"  # from image to noise: linear (rectified flow), vp or gvp
    process.prediction = "velocity"  # what the network learns: velocity, x0, eps or v
    process.time_distribution = "logit_normal"  # training times: uniform, logit_normal, mode or cosmap
    process.logit_mean = 0.0  # mean of logit(t), for logit_normal
    process.logit_std = 1.0  # standard deviation of logit(t)
    process.mode_scale = 1.29  # weight of the middle, for mode
    process.shift = 1.0  # SD3's timestep shift of the training times; 1 = none
    process.weigh_as = ""  # weigh losses as if times came from this distribution; "" = no weights
    process.time_scale = 1000.0  # the network is told time_scale * t
    process.condition_dropout = 0.1  # share of images trained without label

    config.optimizer = optimizer = ConfigDict()
    optimizer.name = "adamw"  # adamw, adam, lion, muon (of hidden matrices, AdamW of the rest) or schedule_free_adamw
    optimizer.learning_rate = 1e-4  # peak
    optimizer.b1 = 0.9  # decay of the first moment
    optimizer.b2 = 0.999  # decay of the second moment
    optimizer.eps = 1e-8  # added to the root of the second moment
    optimizer.moment_dtype = "float32"  # of the first moment: float32 or bfloat16
    optimizer.muon_momentum = 0.95  # decay of muon's moment
    optimizer.weight_decay = 0.0  # of the parameters that the next field names
    optimizer.decayed = "(.*/)?kernel"  # regular expression of whole names, such as block_0/mlp/hidden/kernel
    optimizer.clip_norm = 1.0  # longest gradient; 0 = no clipping

    config.schedule = schedule = ConfigDict()
    schedule.name = "constant"  # after the warm-up: constant, cosine or linear down to 0 at the end, or inverse_sqrt
    schedule.warmup_steps = 1000  # steps of linear warm-up
    schedule.reference_steps = 70_000  # inverse_sqrt: steps before the rate falls (EDM2)

    config.ema = ema = ConfigDict()
    ema.decay = 0.9999  # of the parameters' moving average, which samples are drawn with
    ema.more_decays = ()  # of further averages, for `sample --ema`
    ema.stds = ()  # widths of power-function averages (EDM2), such as (0.05, 0.1), for `posthoc_ema`
    ema.snapshot_steps = 1000  # steps between two snapshots of those

    config.guard = guard = ConfigDict()
    guard.patience = 10  # updates in a row that may be skipped, because loss or gradient are not finite, before a stop
    guard.jump = 0.0  # stop at a loss this many standard deviations above its running mean; 0 = never

    config.mesh = mesh = ConfigDict()
    mesh.data = 0  # devices among which batches are cut; 0 = all that fsdp leaves
    mesh.fsdp = 1  # devices among which batches and parameters are cut

    config.log = ConfigDict()
    config.log.every_steps = 100  # steps between two rows of metrics, which are means over them
    config.log.tensorboard = True  # TensorBoard events beside metrics.jsonl

    config.checkpoint = checkpoint = ConfigDict()
    checkpoint.every_steps = 1000  # steps between two checkpoints
    checkpoint.keep = 3  # newest ones
    checkpoint.keep_best = 0  # and those with the lowest `best_metric`
    checkpoint.best_metric = "loss"  # a name in metrics.jsonl
    checkpoint.keep_every = 0  # and those of every multiple of so many steps; 0 = none
    checkpoint.required = True  # stop when one cannot be written, instead of training on

    config.sample = sample = ConfigDict()
    sample.every_steps = 1000  # steps between two sample grids
    sample.solver = "dpmpp_2m"  # a file of archirf_jax/samplers/solvers
    sample.steps = 20  # solver steps
    sample.grid = "uniform"  # times they visit: a name or respacing in archirf_jax/samplers/grids.py
    sample.shift = 1.0  # SD3's timestep shift, for the grid shifted; 1 = none
    sample.eta = -1.0  # noise of ddim (0 to 1) and euler_maruyama; below 0 = the solver's own
    sample.churn = 0.0  # noise of edm; 0 = none
    sample.guidance = "classifier_free"  # or adaptive_projected
    sample.guidance_scale = 1.5  # 1 = off
    sample.guidance_interval = (0.0, 1.0)  # times in which classifier_free acts
    sample.guidance_rescale = 0.0  # 0 to 1: pulls the contrast of classifier_free back
    sample.guidance_parallel = 0.0  # adaptive_projected: share of the part along the image
    sample.guidance_longest = 0.0  # adaptive_projected: length the difference is cut to; 0 = never
    sample.guidance_momentum = 0.0  # adaptive_projected: weight of earlier differences
    sample.threshold = "none"  # predicted images: none, static (cut to [-1, 1]) or dynamic (Imagen)
    sample.classes = 10  # rows of a grid, at most
    sample.per_class = 8  # columns of a grid
    return config.lock()
