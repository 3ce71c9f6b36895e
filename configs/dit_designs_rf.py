"""The four designs of DiT with rectified flow on digits: the data and training of configs/dit_rf.py, another block.

    python -m archirf_jax.main --config=configs/dit_designs_rf.py:in_context --workdir=runs/dit_in_context

Variants (Peebles & Xie 2022, Sec. 3.2): adaln_zero (the default, that of configs/dit_rf.py), adaln, cross_attention,
in_context. On other data: --config=configs/dit_rf.py:cifar10 --config.model.conditioning=adaln
"""

from ml_collections import ConfigDict

from archirf_jax.models.dit import MODULATIONS
from configs import dit_rf


def get_config(variant: str = "adaln_zero") -> ConfigDict:
    """The configuration of one design."""
    if variant not in MODULATIONS:
        raise ValueError(f"configs/dit_designs_rf.py has no variant {variant!r}; it has {', '.join(MODULATIONS)}")
    config = dit_rf.get_config("digits")
    config.model.conditioning = variant
    return config
