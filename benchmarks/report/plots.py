"""Plots of the report. matplotlib comes with the extra ``bench``; without it there are none."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

_COLUMNS = 16
"""Bars up to this many stand upright; more lie, so that their names can be read."""


def plot_ratios(title: str, factors: Mapping[str, Mapping[str, float]], path: Path) -> bool:
    """Draws each setting's makespans over ours as bars; says whether matplotlib is there.

    Args:
        factors: Setting -> system -> ratio; ours is 1.
    """
    try:
        import matplotlib
    except ImportError:
        return False
    matplotlib.use("Agg")
    from matplotlib import pyplot

    settings = [name for name, values in factors.items() if values]
    systems = list(dict.fromkeys(name for values in factors.values() for name in values))
    num_bars = sum(len(factors[name]) for name in settings)
    height = 1.2 + 0.24 * (num_bars + len(settings))
    figure, axes = pyplot.subplots(figsize=(8, height), layout="constrained")
    colors = pyplot.get_cmap("tab20")
    positions: list[float] = []
    labels: list[str] = []
    position = 0.0
    longest = max((v for name in settings for v in factors[name].values()), default=1.0)
    for setting in settings:
        start = position
        for name, value in factors[setting].items():
            axes.barh(position, value, color=colors(systems.index(name) % 20), height=0.8)
            axes.text(value + 0.01 * longest, position, f"{value:.2f}", va="center", fontsize=7)
            positions.append(position)
            labels.append(_short(name))
            position += 1
        axes.text(
            1.02, (start + position - 1) / 2, setting, transform=axes.get_yaxis_transform(),
            va="center", fontsize=8, fontweight="bold",
        )  # fmt: skip
        position += 0.8
    axes.set_yticks(positions, labels, fontsize=7)
    axes.invert_yaxis()
    axes.axvline(1.0, color="black", linewidth=0.8)
    axes.set_xlim(0, 1.1 * longest)
    axes.set_xlabel("makespan over ours (above 1: slower than we are)")
    axes.set_title(title, fontsize=9)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
    return True


def _short(name: str, most: int = 34) -> str:
    return name if len(name) <= most else f"{name[: most - 1]}…"


def has_matplotlib() -> bool:
    """Says whether plots can be drawn."""
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


__all__: Sequence[str] = ("has_matplotlib", "plot_ratios")
