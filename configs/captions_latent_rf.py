"""Pictures from captions: MMDiT with rectified flow in latents (Esser et al. 2024, SD3), with a frozen text encoder.

    make data-openmoji data-text
    python -m archirf_jax.main --config=configs/autoencoder.py:openmoji --workdir=runs/ae_openmoji
    python -m archirf_jax.prepare_data --name=openmoji --autoencoder=runs/ae_openmoji --text_encoder=runs/minilm \
      --text_pooled=pooled --flip --out=data/latents_openmoji
    python -m archirf_jax.main --config=configs/captions_latent_rf.py --workdir=runs/captions
    python -m archirf_jax.sample --workdir=runs/captions --prompt="grinning face" --per_prompt=4 --out=faces.png

3,402 emoji with their names, 64x64 pixels, latents of 8x8x16; all-MiniLM-L6-v2 encodes the names beforehand. For images
of your own, name their folder and an autoencoder in prepare_data, and in the training --config.data.name,
--config.frozen.autoencoder and --config.data.fields.text.cache.

Cost: 45 minutes on 2 CPU cores, after 38 for the autoencoder and one for the caches.
Expect: faces, people, hearts and hands that are what their names say; things with few relatives, and countries, are not
drawn yet (docs/text.md).
"""

from ml_collections import ConfigDict

from configs import default

VARIANTS = ("openmoji",)
WIDTH = 384  # of MiniLM's states


def get_config(variant: str = "openmoji") -> ConfigDict:
    """The configuration of one of VARIANTS."""
    config = default.get_config(default.choose(variant, VARIANTS))
    with config.unlocked():
        default.in_latents(config, variant)
        config.update(steps=1400, batch_size=64)
        config.data.flip = True
        config.frozen.text = "runs/minilm"
        states = {"name": "text_states", "cache": "data/latents_openmoji/texts", "length": None}
        config.data.fields = ConfigDict({"text": states | {"width": WIDTH, "pooled_width": WIDTH}})
        config.conditioners = ConfigDict({"text": {"name": "text", "length": None, "pooled": "pooled"}})

        config.model = model = ConfigDict({"name": "mmdit", "context": "text"})
        model.context_width = model.pooled_width = WIDTH
        model.patch_size = 2
        model.hidden_size = 256
        model.depth = 6  # blocks of two streams
        model.depth_single = 2  # and of one after them
        model.num_heads = 4
        model.qk_norm = "rms"
        model.dtype = "float32"

        config.process = process = ConfigDict({"name": "rectified_flow", "path": "linear", "prediction": "velocity"})
        process.update(time_scale=1000.0, towards="noise")
        config.objective.update(name="regression", time_distribution="logit_normal", condition_dropout=0.1)
        config.optimizer.update(name="muon", learning_rate=2e-3, clip_norm=1.0)
        config.schedule.update(name="cosine", warmup_steps=100)
        config.ema.decay = 0.995
        config.checkpoint.every_steps = config.sample.every_steps = 200
        config.sample.update(solver={"name": "dpmpp_2m"}, grid={"name": "uniform"}, steps=20)
        config.sample.guidance.scale = 3.0
    return config
