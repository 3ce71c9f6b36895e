"""GLIDE at small size: ADM's U-Net reads captions by a text transformer that is trained with it (Nichol et al. 2021).

    python -m archirf_jax.prepare_data --name=scenes
    python -m archirf_jax.main --config=configs/adm_text_ddpm.py --workdir=runs/adm_text
    python -m archirf_jax.sample --workdir=runs/adm_text --prompt="a red seven above a blue two" --out=scene.png

20,000 scenes of one or two coloured digits, 16x16 pixels, with captions of at most 12 words. Every attention of the
U-Net is over pixels and words at once; the state of the last word stands where ADM has its label. A tenth of the
captions is dropped, for classifier-free guidance.

Variants: scenes.

Cost: not measured yet.
Expect: not measured yet; benchmarks.scenes judges it as it judges configs/scenes_rf.py.
"""

from ml_collections import ConfigDict

from configs import default

WORDS = 12  # tokens of a caption
WIDTH = 128  # of the words' states
VARIANTS = ("scenes",)


def get_config(variant: str = "scenes") -> ConfigDict:
    """The configuration of one of VARIANTS."""
    default.choose(variant, VARIANTS)
    config = default.get_config()
    with config.unlocked():
        config.update(steps=2000, batch_size=64)
        config.data.update(name="scenes", image_size=16, channels=3)
        config.data.fields.caption = ConfigDict({"name": "caption", "length": WORDS})
        config.conditioners = ConfigDict(
            {"caption": {"name": "given", "shapes": {"ids": (WORDS,), "mask": (WORDS,)}}}  # dropped: no word at all
        )
        config.model = model = ConfigDict({"name": "captioned"})
        model.network = network = ConfigDict({"name": "adm_unet", "class_conditional": False})
        network.context_width = WIDTH  # of the words, which join the pixels' keys and values in every attention
        network.pooled_width = WIDTH  # of the last word, which is added to the embedding of time
        network.model_channels = 32
        network.channel_mult = (1, 2, 4)
        network.num_res_blocks = 1
        network.attention_downsamples = (2, 4)
        network.num_head_channels = 32
        network.learn_sigma = True  # twice the channels: the process learns the variance
        model.text = text = ConfigDict({"name": "text_transformer"})
        text.vocab_size = 64  # ids of the set's own tokenizer are below this
        text.max_length = WORDS
        text.hidden_size = WIDTH
        text.depth = 2
        text.num_heads = 4
        text.pooling = "last"
        model.dtype = "float32"

        config.process = process = ConfigDict({"name": "ddpm"})
        process.schedule = "cosine"  # of beta: linear, scaled_linear or cosine
        process.steps = 1000  # T
        process.beta_start = None  # first beta; None = the schedule's published one, times 1000 / T
        process.beta_end = None  # last beta; None = the schedule's published one, times 1000 / T
        process.prediction = "eps"  # what the network predicts: eps, x0 or v
        process.zero_terminal_snr = False  # end at noise alone; for x0 and v
        process.variance = "learned_range"  # of ancestral steps: fixed_small, fixed_large or learned_range
        process.respacing = None  # train on these steps alone, such as "250"

        config.objective = objective = ConfigDict({"name": "ddpm_hybrid"})
        objective.time_sampling = "uniform"  # or loss_second_moment
        objective.bound_weight = 0.001  # of T times the variational bound, which trains the variance
        objective.condition_dropout = 0.1  # share of examples trained without caption

        config.optimizer.update(name="adamw", learning_rate=1e-3, clip_norm=1.0)
        config.schedule.update(name="cosine", warmup_steps=100)
        config.ema.decay = 0.998
        config.checkpoint.every_steps = config.sample.every_steps = 500
        config.sample.update(solver={"name": "dpmpp_2m"}, grid={"name": "karras"}, steps=20)
        config.sample.guidance.scale = 3.0  # as the paper's samples
    return config
