"""What the rows of trials say: the table, the plot, the page of images, and the table's place in the README."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy import stats

from archirf_jax.errors import UserError
from archirf_jax.files import atomic_write
from experiments.autoencoders.arms import ARMS, QUESTIONS

Rows = Sequence[Mapping[str, Any]]
# Columns of the table: heading, group and name in a row, format.
COLUMNS = (
    ("PSNR", "reconstruction", "psnr", ".1f"),
    ("SSIM", "reconstruction", "ssim", ".3f"),
    ("MS-SSIM", "reconstruction", "ms_ssim", ".3f"),
    ("distance of reconstructions", "reconstruction", "frechet", ".3g"),
    ("distance of samples", "generation", "frechet", ".3g"),
    ("spread", "latents", "latent/std", ".2f"),
    ("beyond the bound", "latents", "latent/saturated", ".1%"),
)
GENERATION = ("generation", "frechet")
# What the distance of samples is compared with: name in the plot, group and name in a row, whether more is better.
AGAINST = {
    "PSNR": ("reconstruction", "psnr", True),
    "distance of reconstructions": ("reconstruction", "frechet", False),
}
FEWEST = 3  # arms that a rank correlation is about


def by_arm(rows: Rows) -> dict[str, list[Mapping[str, Any]]]:
    """The rows of each arm by seed, arms in the order of ARMS; those without rows are left out."""
    found = {arm: sorted((row for row in rows if row["arm"] == arm), key=lambda row: row["seed"]) for arm in ARMS}
    return {arm: mine for arm, mine in found.items() if mine}


def table(rows: Rows) -> str:
    """A Markdown table: of each arm the mean and, in brackets, every seed's figure."""
    lines = ["| arm | " + " | ".join(column[0] for column in COLUMNS) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for arm, mine in by_arm(rows).items():
        cells = [_cell([row[of][name] for row in mine if name in row[of]], how) for _, of, name, how in COLUMNS]
        lines.append(f"| `{arm}` | " + " | ".join(cells) + " |")
    samples, real = (_half(rows, which) for which in ("half_of_samples", "half_of_real"))
    lines += ["", "From one half of the held-out images, half as many samples have distances from "]
    lines[-1] += f"{min(samples):.3g} to {max(samples):.3g}, and the other half of the images {np.mean(real):.3g}."
    return "\n".join(lines)


def _half(rows: Rows, which: str) -> list[float]:
    return [row["generation"][which] for row in rows]


def _cell(values: Sequence[float], how: str) -> str:
    if not values:
        return ""
    mean = format(float(np.mean(values)), how)
    return mean if len(values) == 1 else f"{mean} ({', '.join(format(value, how) for value in values)})"


def correlations(rows: Rows) -> dict[str, float]:
    """Spearman's rank correlation, over the arms' means, of how good reconstructions and how good samples are.

    1: the better an arm's reconstructions, the better its samples. {} where there are fewer than FEWEST arms.
    """
    arms = by_arm(rows)
    if len(arms) < FEWEST:
        return {}
    found = {}
    for label, (group, name, more) in AGAINST.items():
        first, second = ([_mean(mine, *where) for mine in arms.values()] for where in ((group, name), GENERATION))
        found[label] = float(stats.spearmanr(first, second).statistic) * (-1 if more else 1)
    return found


def _mean(rows: Rows, group: str, name: str) -> float:
    return float(np.mean([row[group][name] for row in rows]))


def scatter(rows: Rows) -> Any:
    """A matplotlib figure: distance of samples against each measure of reconstructions; a line joins an arm's seeds."""
    from matplotlib.figure import Figure

    figure, ranks = Figure(figsize=(11, 4.8), layout="constrained"), correlations(rows)
    panels = figure.subplots(1, len(AGAINST), sharey=True)
    for panel, (label, (group, name, _)) in zip(panels, AGAINST.items(), strict=True):
        for arm, mine in by_arm(rows).items():
            x, y = ([row[first][second] for row in mine] for first, second in ((group, name), GENERATION))
            panel.plot(x, y, f"{_marker(arm)}-", color=_colour(arm), markersize=5, linewidth=0.8, label=arm)
        panel.set_xlabel(label)
        panel.set_title(f"rank correlation of how good both are: {ranks[label]:+.2f}" if ranks else "", fontsize=9)
        panel.grid(alpha=0.3)
        panel.axhline(np.mean(_half(rows, "half_of_real")), color="grey", linewidth=1, linestyle=":")
    panels[0].set_ylabel("Frechet distance of samples from held-out images")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=7, frameon=False)
    return figure


def _colour(arm: str) -> str:
    """One for each question."""
    return f"C{QUESTIONS.index(ARMS[arm].question)}"


def _marker(arm: str) -> str:
    """One for each arm of a question."""
    return "osD^v"[[other for other, what in ARMS.items() if what.question == ARMS[arm].question].index(arm)]


def page(originals: np.ndarray, arms: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> tuple[np.ndarray, list[str]]:
    """Images (rows, columns, H, W, C) and the rows' names: reconstructions on the left, samples on the right.

    Args:
        originals: (2 n, H, W, C) uint8; the first n are those that were reconstructed.
        arms: by name, reconstructions and samples (n, H, W, C) uint8.
    """
    middle = len(originals) // 2
    pairs = {"originals": (originals[:middle], originals[middle:]), **arms}
    gap = np.full_like(originals[:1], 255)
    return np.stack([np.concatenate([left, gap, right]) for left, right in pairs.values()]), list(pairs)


def insert(path: pathlib.Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- NAME -->` and `<!-- end of NAME -->` in a file.

    Raises:
        UserError: the file does not have each of them once, in this order.
    """
    first, last = f"<!-- {name} -->", f"<!-- end of {name} -->"
    whole = path.read_text("utf-8")
    if whole.count(first) != 1 or whole.count(last) != 1 or whole.index(first) > whole.index(last):
        raise UserError("OUT", str(path), f"must have {first} and {last}, once and in this order")
    before, after = whole.split(first)[0], whole.split(last)[1]
    atomic_write(path, f"{before}{first}\n\n{text}\n\n{last}{after}")
