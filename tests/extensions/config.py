"""The digits' configuration for extensions; variants are objectives with fields of their own."""

from ml_collections import ConfigDict

from configs import dit_rf


def get_config(variant: str = "") -> ConfigDict:
    """The configuration of configs/dit_rf.py; with a variant the objective's fields are left to the command line."""
    config = dit_rf.get_config("digits")
    with config.unlocked():
        if variant:
            config.objective = ConfigDict({"name": variant})
    return config
