"""Rectified flow from captions: with a text encoder that is trained with the network (Nichol et al. 2021), or another.

    python -m archirf_jax.prepare_data --name=scenes
    python -m archirf_jax.main --config=configs/scenes_rf.py --workdir=runs/scenes
    python -m archirf_jax.sample --workdir=runs/scenes --prompt="a red seven to the left of a blue two" --out=scene.png

20,000 scenes of one or two coloured digits, 16x16 pixels, with captions of at most 12 words. The network is an MMDiT
whose second stream holds the words' states (Esser et al. 2024).

| variant | where the states of words come from                                                       |
|---------|-------------------------------------------------------------------------------------------|
| scenes  | a text transformer that is trained with the network, the default                          |
| words   | a learned vector of each word and one of its place: no encoder                            |
| minilm  | a frozen encoder that was trained on sentences, all-MiniLM-L6-v2 (make data-text, before) |
| cached  | the same, from what it made of the captions beforehand                                    |

For cached, after make data-text:

    python -m archirf_jax.prepare_data --name=scenes --text_encoder=runs/minilm --text_length=16 --text_pooled=pooled

Cost: 8 minutes on 2 CPU cores.
Expect: benchmarks.scenes at guidance scale 4 finds 97 % of prompts with one object right and 89 % with two (real test
scenes: 94 and 88 %); of those with a pair that no training scene has, 92 and 85 %. With words and cached 99 and 94 %
with one object, and 8 % with two (docs/text.md).
"""

from ml_collections import ConfigDict

from configs import default

WORDS = 12  # tokens of a caption
PIECES = 16  # and of what MiniLM makes of one
WIDTH = 128
VARIANTS = ("scenes", "words", "minilm", "cached")


def get_config(variant: str = "scenes") -> ConfigDict:
    """The configuration of one of VARIANTS."""
    default.choose(variant, VARIANTS)
    config = default.get_config()
    with config.unlocked():
        config.update(steps=800, batch_size=64)
        config.data.update(name="scenes", image_size=16, channels=3)
        network = ConfigDict({"name": "mmdit", "context": "text"})
        network.patch_size = 2
        network.hidden_size = WIDTH
        network.depth = 4  # blocks of two streams
        network.depth_single = 1  # and of one after them
        network.num_heads = 4
        network.qk_norm = "rms"
        _READERS[variant](config, network)

        config.process = process = ConfigDict({"name": "rectified_flow", "path": "linear", "prediction": "velocity"})
        process.update(time_scale=1000.0, towards="noise")
        config.objective.update(name="regression", time_distribution="logit_normal", condition_dropout=0.1)
        config.optimizer.update(name="muon", learning_rate=2e-3)
        config.schedule.update(name="cosine", warmup_steps=100)
        config.ema.decay = 0.998
        config.checkpoint.every_steps = config.sample.every_steps = 200
        config.sample.guidance.scale = 4.0
    return config


def _trained(config: ConfigDict, network: ConfigDict) -> None:
    """A text encoder that is trained with the network."""
    network.context_width = network.pooled_width = WIDTH
    config.data.fields.caption = ConfigDict({"name": "caption", "length": WORDS})
    config.conditioners = ConfigDict(
        {"caption": {"name": "given", "shapes": {"ids": (WORDS,), "mask": (WORDS,)}}}  # dropped: no word at all
    )
    config.model = model = ConfigDict({"name": "captioned", "network": network})
    model.text = text = ConfigDict({"name": "text_transformer"})
    text.vocab_size = 64  # ids of the set's own tokenizer are below this
    text.max_length = WORDS
    text.hidden_size = WIDTH
    text.depth = 2
    text.num_heads = 4
    model.dtype = "float32"


def _words(config: ConfigDict, network: ConfigDict) -> None:
    _trained(config, network)
    config.model.text.depth = 0


def _minilm(config: ConfigDict, network: ConfigDict) -> None:
    config.frozen.text = "runs/minilm"
    config.data.fields.caption = ConfigDict({"name": "caption", "length": PIECES, "tokenizer": "runs/minilm"})
    config.conditioners = ConfigDict({"text": {"name": "text", "length": PIECES, "pooled": "pooled"}})
    network.context_width = network.pooled_width = 384
    config.model = network
    config.model.dtype = "float32"


def _cached(config: ConfigDict, network: ConfigDict) -> None:
    _minilm(config, network)
    states = {"name": "text_states", "cache": "data/texts_scenes", "length": PIECES, "width": 384, "pooled_width": 384}
    config.data.fields = ConfigDict({"text": states})


_READERS = {"scenes": _trained, "words": _words, "minilm": _minilm, "cached": _cached}
