"""Figures of latents: a panel for each channel, and a panel for what metrics hold."""

from __future__ import annotations

import numpy as np
import pytest

from archirf_jax.visuals import latents


@pytest.mark.parametrize("channels", [1, 5, 8])
def test_each_channel_has_a_panel_with_all_its_values_and_its_deviation(
    channels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latents, "MOST", 6)
    z = np.random.default_rng(0).normal(size=(3, 4, 4, channels)) * np.arange(1, channels + 1)
    panels = [axes for axes in latents.histograms(z).axes if axes.axison]
    assert len(panels) == min(channels, latents.MOST)
    for i, axes in enumerate(panels):
        assert sum(bar.get_height() for bar in axes.patches) == 48
        assert f"{z[..., i].std():.2f}" in axes.get_title()


def test_values_that_are_not_finite_are_left_out() -> None:
    z = np.ones((2, 2, 2, 2))
    z[0, ..., 0], z[..., 1] = np.nan, np.inf
    first, second = latents.histograms(z).axes
    assert sum(bar.get_height() for bar in first.patches) == 4 and "not finite" in second.get_title()


def test_panels_over_time_are_those_that_metrics_hold() -> None:
    rows = [{"step": step, "loss": 1.0, "latent/std": 0.1 * step} for step in (1, 2, 3)]
    rows[1]["latent_gain"] = 2.0
    assert latents.shown(rows) == {"standard deviation": ("latent/std",), "gain": ("latent_gain",)}
    assert latents.shown([{"step": 1, "loss": 1.0}]) == {}
    first, second = latents.over_time(rows).axes
    np.testing.assert_allclose(first.lines[0].get_xydata(), [[1, 0.1], [2, 0.2], [3, 0.3]])
    np.testing.assert_allclose(second.lines[0].get_xydata(), [[2, 2.0]])
