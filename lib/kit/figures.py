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
    "grey": "#666666",
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


def _summary(
    values: Any, points: int = 5, floor: float = 1e-9, scale: float = 0.0
) -> str:
    """Length, minimum, maximum, mean and sampled points of an array, as text.

    What lies below floor times the largest value (or the scale, the reach of the axis)
    is rounding noise and reads as zero.
    """
    flat = np.ma.filled(np.ma.asarray(values, dtype=float), np.nan).ravel()
    finite = flat[np.isfinite(flat)]
    if not finite.size:
        return f"n={flat.size}" + (" (no finite value)" if flat.size else "")
    noise = floor * max(np.abs(finite).max(), scale)

    def said(value: float) -> str:
        return number(0.0 if abs(value) < noise else value)

    picks = np.linspace(0, flat.size - 1, min(points, flat.size)).round().astype(int)
    words = [f"n={flat.size}"]
    if holes := flat.size - finite.size:
        words.append(f"not finite={holes}")
    words.append(f"min={said(finite.min())} max={said(finite.max())}")
    words.append(f"mean={said(finite.mean())}")
    words.append(f"at=[{' '.join(said(x) for x in flat[picks])}]")
    return " ".join(words)


def _span(values: Any) -> str:
    """First and last value where the rest follows evenly; else the whole summary."""
    flat = np.asarray(values, dtype=float).ravel()
    if not flat.size:
        return "n=0"
    steps = np.diff(flat)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.diff(np.log(flat))
    for gaps in (steps, ratios):
        if np.allclose(gaps, gaps[:1].sum(), rtol=1e-3, atol=0.0):
            return f"{number(flat[0])} to {number(flat[-1])}"
    return _summary(flat)


def _name(artist: Any) -> str:
    label = str(artist.get_label())
    return "" if label.startswith("_") else f" {label!r}"


def _line(line: Any, points: int, floor: float, scale: float) -> str:
    xy = line.get_data(orig=False)  # numbers, also where words or dates were given
    depth = ""
    if hasattr(line, "get_data_3d"):
        *xy, z = line.get_data_3d()
        depth = f"; z {_summary(z, points)}"
    y = _summary(xy[1], points, floor, scale)
    return f"line{_name(line)}: x {_span(xy[0])}; y {y}{depth}"


def _collection(item: Any, points: int, floor: float, scale: float) -> str:
    from matplotlib import collections, quiver

    def both(kind: str, xy: Any) -> str:
        xy = np.ma.asarray(xy).reshape(-1, 2)
        x, y = _summary(xy[:, 0], points), _summary(xy[:, 1], points, floor, scale)
        return f"{kind}{_name(item)}: x {x}; y {y}"

    if isinstance(item, collections.QuadMesh):
        return f"mesh{_name(item)}: {_summary(item.get_array(), points)}"
    if isinstance(item, quiver.Quiver):
        text = both("arrows", item.get_offsets())
        text += f"; u {_summary(item.U, points)}; v {_summary(item.V, points)}"
    elif isinstance(item, collections.PathCollection):
        text = both("points", item.get_offsets())
    else:
        paths = [path.vertices for path in item.get_paths()]
        kind = "area"
        if isinstance(item, collections.LineCollection):
            paths, kind = item.get_segments(), "segments"
        text = both(kind, np.concatenate(paths) if paths else np.zeros((0, 2)))
    colours = item.get_array()
    return text + ("" if colours is None else f"; colour {_summary(colours, points)}")


def _patches(ax: Axes, points: int) -> list[str]:
    """Bars by their container (so with their label), then every other shape."""
    from matplotlib.container import BarContainer
    from matplotlib.patches import FancyArrowPatch

    lines, done = [], set()
    for bars in (c for c in ax.containers if isinstance(c, BarContainer)):
        done |= {id(bar) for bar in bars}
        edges = np.array([(*b.get_xy(), b.get_width(), b.get_height()) for b in bars])
        x, y, width, height = edges.reshape(-1, 4).T
        start, long = (x, width) if bars.orientation == "horizontal" else (y, height)
        base = f" from {_summary(start, points)}" if np.any(start) else ""
        lines.append(f"bars{_name(bars)}: {_summary(long, points)}{base}")
    for patch in (p for p in ax.patches if id(p) not in done):
        if isinstance(patch, FancyArrowPatch):
            continue  # its path is in pixels
        xy = patch.get_patch_transform().transform(patch.get_path().vertices)
        x, y = _summary(xy[:, 0], points), _summary(xy[:, 1], points)
        lines.append(f"shape{_name(patch)}: x {x}; y {y}")
    return lines


def _data(ax: Axes, points: int = 5) -> list[str]:
    """One line of text for each artist that carries data."""
    # On a logarithmic axis small values are the message, not noise.
    linear = ax.get_yscale() == "linear"
    floor, scale = (1e-9, max(map(abs, ax.get_ylim()))) if linear else (1e-13, 0.0)
    lines = [_line(line, points, floor, scale) for line in ax.lines]
    lines += [_collection(item, points, floor, scale) for item in ax.collections]
    for image in ax.get_images():
        shape = "x".join(str(n) for n in np.shape(image.get_array()))
        lines.append(f"image {shape}: {_summary(image.get_array(), points)}")
    return lines + _patches(ax, points)


def _ticks(axis: Any) -> str:
    """The words that stand at the ticks, where they are words."""
    from matplotlib import category, ticker

    words = (ticker.FixedFormatter, ticker.FuncFormatter, category.StrCategoryFormatter)
    if not isinstance(axis.get_major_formatter(), words):
        return ""
    labels = [label.get_text() for label in axis.get_ticklabels()]
    return ", ".join(label for label in labels if label)


def _words(ax: Axes) -> list[str]:
    """Everything that is written inside the axes: ticks, legend, direct labels."""
    lines = [
        f"{name} ticks: {ticks}"
        for name, axis in (("x", ax.xaxis), ("y", ax.yaxis))
        if (ticks := _ticks(axis))
    ]
    if legend := ax.get_legend():
        entries = [text.get_text() for text in legend.get_texts()]
        lines.append(f"legend: {', '.join(entries)}")
    return lines + [f"text: {t.get_text()}" for t in ax.texts if t.get_text()]


def _every_axes(fig: Figure) -> list[Axes]:
    """The axes of a figure, insets included."""
    return [inner for ax in fig.axes for inner in (ax, *ax.child_axes)]


def _written(texts: list[Any]) -> list[str]:
    return [text.get_text() for text in texts if text.get_text()]


def digest(fig: Figure) -> str:
    """The plotted data of a figure as text: labels, lengths, ranges, sampled points."""
    # Suptitle, shared axis labels and free text; all of them lie in fig.texts.
    parts = [f"figure text: {text}" for text in _written(fig.texts)]
    for legend in fig.legends:
        parts.append(f"figure legend: {', '.join(_written(legend.get_texts()))}")
    for k, ax in enumerate(_every_axes(fig)):
        titles = [ax.get_title(loc=place) for place in ("left", "center", "right")]
        title = " | ".join(filter(None, titles))
        scale = "".join(
            f" ({axis} {kind})"
            for axis, kind in (("x", ax.get_xscale()), ("y", ax.get_yscale()))
            if kind != "linear"
        )
        parts.append(
            f"axes {k} {title!r}: {ax.get_xlabel()} -> {ax.get_ylabel()}{scale}"
        )
        parts += [f"  {line}" for line in _data(ax) + _words(ax)]
    return "\n".join(parts)


def short_digest(fig: Figure) -> list[str]:
    """The plotted data only, in few points: one of many states of an explorer."""
    return [line for ax in _every_axes(fig) for line in _data(ax, points=3)]


def png(fig: Figure, dpi: float | None = None, colors: int | None = None) -> bytes:
    """The figure as PNG bytes, the same bytes for the same figure; then it is closed.

    colors: reduce to a palette of so many colours (explorers hold many frames).
    """
    import matplotlib.pyplot as plt
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    buffer = io.BytesIO()
    try:
        if colors is None:
            dpi = dpi or fig.dpi
            fig.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
        else:
            from PIL import Image

            fig.set_dpi(dpi or fig.dpi)
            canvas = FigureCanvasAgg(fig)  # straight to pixels: half the time of a PNG
            canvas.draw()
            image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
            image.quantize(colors).save(buffer, format="png")
    finally:
        plt.close(fig)
    return buffer.getvalue()


def check_alt(alt: str) -> None:
    """Raise ValueError for an alt text that cannot be a sentence."""
    if len(alt.split()) < 4:
        raise ValueError(
            f"the alt text {alt!r} is too short: say in a sentence what is shown."
        )


def show(fig: Figure, alt: str) -> None:
    """Display a figure with its alt text and the digest of what it plots.

    alt: one sentence that says what the figure shows, for readers who cannot see it.
    The figure is closed, also when this raises ValueError for a missing alt text.
    """
    import matplotlib.pyplot as plt
    from IPython.display import display

    try:
        check_alt(alt)
        text = f"Figure: {alt}\n{digest(fig)}"
        picture = base64.b64encode(png(fig)).decode()
    finally:
        plt.close(fig)
    width = math.ceil(fig.get_figwidth() * 100)
    bundle = {"image/png": picture, "text/plain": text}
    display(bundle, raw=True, metadata={"image/png": {"alt": alt, "width": width}})
