"""House style, and figures that can be checked: alt text and a digest of the data.

nbval never looks at pixels, so `show` puts the plotted numbers next to the picture as
text. A figure that shows the wrong curve then fails the comparison.
"""

from __future__ import annotations

import base64
import io
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from lib.kit.claims import number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, safe for colour-blind readers; darker yellow for white paper.
COLORS = {
    "blue": "#0072B2",
    "orange": "#D55E00",
    "green": "#009E73",
    "pink": "#CC79A7",
    "sky": "#56B4E9",
    "amber": "#E69F00",
    "black": "#222222",
    "grey": "#888888",
}


def style() -> None:
    """Set the collection's figure style (opaque ground, so dark pages stay legible)."""
    import matplotlib as mpl
    from cycler import cycler

    mpl.rcParams.update(
        {
            "figure.figsize": (7.2, 3.2),
            "figure.dpi": 110,
            "figure.facecolor": "white",
            "figure.constrained_layout.use": True,
            "savefig.facecolor": "white",
            "axes.prop_cycle": cycler(color=list(COLORS.values())),
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": 11,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.labelsize": 10,
            "axes.grid": True,
            "grid.color": "#dddddd",
            "grid.linewidth": 0.6,
            "lines.linewidth": 1.8,
            "legend.frameon": False,
            "legend.fontsize": 9,
            "xtick.labelsize": 9,
            "ytick.labelsize": 9,
            "font.size": 10,
            "image.cmap": "cividis",
        }
    )


def _clean(values: Any) -> np.ndarray:
    """Flat floats; what is rounding noise beside the largest value becomes zero."""
    flat = np.ma.filled(np.ma.asarray(values, dtype=float), np.nan).ravel()
    finite = flat[np.isfinite(flat)]
    if finite.size:
        flat = np.where(np.abs(flat) < 1e-9 * np.abs(finite).max(), 0.0, flat)
    return flat


def _summary(values: Any, points: int = 5) -> str:
    flat = _clean(values)
    if not flat.size:
        return "n=0"
    low, high = np.nanmin(flat), np.nanmax(flat)
    picks = flat[
        np.linspace(0, flat.size - 1, min(points, flat.size)).round().astype(int)
    ]
    at = " ".join(number(x) for x in picks)
    return f"n={flat.size} min={number(low)} max={number(high)} at=[{at}]"


def _name(artist: Any) -> str:
    label = str(artist.get_label())
    return "" if label.startswith("_") else f" {label!r}"


def _axes_lines(ax: Axes) -> list[str]:
    from matplotlib import collections, patches
    from matplotlib.image import AxesImage

    lines = []
    for line in ax.lines:
        x, y = (np.asarray(v, dtype=float) for v in line.get_data())
        span = f"x={number(x[0])}..{number(x[-1])} " if x.size else ""
        lines.append(f"line{_name(line)}: {span}y {_summary(y)}")
    for item in ax.collections:
        if isinstance(item, collections.PathCollection):
            xy = np.ma.asarray(item.get_offsets())
            lines.append(
                f"points{_name(item)}: x {_summary(xy[:, 0])}; y {_summary(xy[:, 1])}"
            )
        elif isinstance(item, collections.QuadMesh):
            lines.append(f"mesh{_name(item)}: {_summary(item.get_array())}")
        elif isinstance(item, collections.LineCollection):
            parts = item.get_segments()
            ends = np.concatenate(parts) if parts else np.zeros((0, 2))
            lines.append(f"segments{_name(item)}: y {_summary(ends[:, 1])}")
        else:
            paths = [path.vertices for path in item.get_paths()]
            ends = np.concatenate(paths) if paths else np.zeros((0, 2))
            lines.append(f"area{_name(item)}: y {_summary(ends[:, 1])}")
    for image in (i for i in ax.get_images() if isinstance(i, AxesImage)):
        shape = "x".join(str(n) for n in np.shape(image.get_array()))
        lines.append(f"image {shape}: {_summary(image.get_array())}")
    bars = [p for p in ax.patches if isinstance(p, patches.Rectangle)]
    if bars:
        lines.append(
            f"bars: {_summary([b.get_height() * b.get_width() for b in bars])}"
        )
    lines += [f"text: {text.get_text()}" for text in ax.texts if text.get_text()]
    return lines


def digest(fig: Figure) -> str:
    """The plotted data of a figure as text: labels, lengths, ranges, sampled points."""
    parts = []
    for k, ax in enumerate(fig.axes):
        title = ax.get_title(loc="left") or ax.get_title()
        scale = "".join(
            f" ({axis} {kind})"
            for axis, kind in (("x", ax.get_xscale()), ("y", ax.get_yscale()))
            if kind != "linear"
        )
        parts.append(
            f"axes {k} {title!r}: {ax.get_xlabel()} -> {ax.get_ylabel()}{scale}"
        )
        parts += [f"  {line}" for line in _axes_lines(ax)]
    return "\n".join(parts)


def png(fig: Figure, dpi: float | None = None, colors: int | None = None) -> bytes:
    """The figure as PNG bytes, the same bytes for the same figure; then it is closed.

    colors: reduce to a palette of so many colours (explorers hold many frames).
    """
    import matplotlib.pyplot as plt

    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", dpi=dpi or fig.dpi, metadata={"Software": None})
    plt.close(fig)
    if colors is None:
        return buffer.getvalue()
    from PIL import Image

    small = io.BytesIO()
    image = Image.open(buffer).convert("RGB").quantize(colors)
    image.save(small, format="png", optimize=True)
    return small.getvalue()


def show(fig: Figure, alt: str) -> None:
    """Display a figure with its alt text and the digest of what it plots.

    alt: one sentence that says what the figure shows, for readers who cannot see it.
    """
    from IPython.display import display

    if len(alt.split()) < 4:
        raise ValueError(
            f"the alt text {alt!r} is too short: say in a sentence what is shown."
        )
    text = f"Figure: {alt}\n{digest(fig)}"
    width = math.ceil(fig.get_figwidth() * 100)
    bundle = {"image/png": base64.b64encode(png(fig)).decode(), "text/plain": text}
    display(bundle, raw=True, metadata={"image/png": {"alt": alt, "width": width}})
