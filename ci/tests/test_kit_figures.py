"""Tests of kit.figures: digests that see every change, and pictures that stay open."""

import base64
import io
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import matplotlib as mpl
import matplotlib.colors
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from ci.nbval_tolerance import Tolerance, compare
from lib.kit.figures import COLORS, digest, png, show, style

X = np.linspace(0, 1, 101)
NOISE = 1e-14 * np.random.default_rng(0).standard_normal(101)


@pytest.fixture(autouse=True)
def _house_style() -> Iterator[None]:
    with mpl.rc_context():
        mpl.use("agg")
        style()
        yield
    plt.close("all")


def drawn(plot: Callable[[Any], Any], **labels: str) -> str:
    """The digest of a figure with one axes, closed afterwards."""
    fig, ax = plt.subplots()
    plot(ax)
    ax.set(**labels)
    text = digest(fig)
    plt.close(fig)
    return text


def same_to_nbval(a: str, b: str) -> bool:
    return compare(a, b, Tolerance()).same


# --- what the digest says ------------------------------------------------------------


def test_digest_of_a_line():
    text = drawn(
        lambda ax: ax.plot(X, X**2, label="square"),
        xlabel="time (s)",
        ylabel="x",
        title="A law",
    )
    assert text.splitlines() == [
        "axes 0 'A law': time (s) -> x",
        "  line 'square': x 0.000 to 1.000; y n=101 min=0.000 max=1.000 mean=0.3350 "
        "at=[0.000 0.06250 0.2500 0.5625 1.000]",
    ]


def test_digest_names_logarithmic_axes_and_sees_small_values():
    y = 10.0 ** -np.arange(1, 12)
    text = drawn(lambda ax: ax.loglog(np.arange(1, 12), y))
    assert "(x log) (y log)" in text
    assert "min=1.000e-11" in text
    assert "(x log)" not in drawn(lambda ax: ax.semilogy(X, X + 1))


def test_digest_of_empty_and_broken_data():
    assert "y n=0" in drawn(lambda ax: ax.plot([], []))
    assert "y n=2 (no finite value)" in drawn(lambda ax: ax.plot([0, 1], [np.nan] * 2))
    text = drawn(lambda ax: ax.plot([0, 1, 2], [1.0, np.nan, np.inf]))
    assert "n=3 not finite=2 min=1.000 max=1.000 mean=1.000 at=[1.000 nan inf]" in text


def test_digest_of_words_and_dates_on_an_axis():
    text = drawn(lambda ax: ax.plot(["a", "b", "c"], [1, 2, 4]))
    assert "x 0.000 to 2.000; y n=3" in text
    assert "x ticks: a, b, c" in text
    days = np.array(["2020-01-01", "2020-01-02"], dtype="datetime64[D]")
    assert "y n=2 min=1.000" in drawn(lambda ax: ax.plot(days, [1, 2]))


PLOTS: dict[str, Callable[[Any, np.ndarray], Any]] = {
    "line": lambda ax, y: ax.plot(X, y),
    "x of a line": lambda ax, y: ax.plot(y, X),
    "log line": lambda ax, y: ax.semilogy(X, np.abs(y) + 0.1),
    "log-log line": lambda ax, y: ax.loglog(X + 1, np.abs(y) + 0.1),
    "step": lambda ax, y: ax.step(X, y),
    "points": lambda ax, y: ax.scatter(X, y),
    "x of points": lambda ax, y: ax.scatter(y, X),
    "colour of points": lambda ax, y: ax.scatter(X, X, c=y),
    "bars": lambda ax, y: ax.bar(range(7), np.abs(y[:70:10]) + 0.2),
    "bars across": lambda ax, y: ax.barh(range(7), np.abs(y[:70:10]) + 0.2),
    "stacked bars": lambda ax, y: ax.bar(range(7), 1, bottom=np.abs(y[:70:10])),
    "histogram": lambda ax, y: ax.hist(y + X / 50, bins=5),
    "histogram outline": lambda ax, y: ax.hist(y + X / 50, bins=5, histtype="step"),
    "stairs": lambda ax, y: ax.stairs(y),
    "image": lambda ax, y: ax.imshow(y[:100].reshape(10, 10)),
    "colour image": lambda ax, y: ax.imshow(np.abs(y[:99]).reshape(3, 11, 3) % 1),
    "mesh": lambda ax, y: ax.pcolormesh(y[:100].reshape(10, 10)),
    "fast mesh": lambda ax, y: ax.pcolor(y[:100].reshape(10, 10)),
    "hexagons": lambda ax, y: ax.hexbin(X, y, gridsize=6),
    "contour": lambda ax, y: ax.contour(np.outer(X, y), levels=4),
    "filled contour": lambda ax, y: ax.contourf(np.outer(X, y), levels=4),
    "band": lambda ax, y: ax.fill_between(X, y, y + 1),
    "band across": lambda ax, y: ax.fill_betweenx(X, y, y + 1),
    "error bars": lambda ax, y: ax.errorbar(X, X, yerr=np.abs(y)),
    "vertical lines": lambda ax, y: ax.vlines(X, 0, y),
    "horizontal lines": lambda ax, y: ax.hlines(X, 0, y),
    "a level": lambda ax, y: ax.axhline(y[30]),
    "a place": lambda ax, y: ax.axvline(y[30]),
    "a span": lambda ax, y: ax.axvspan(0, y[30] + 2),
    "polygon": lambda ax, y: ax.fill(X, y),
    "stem": lambda ax, y: ax.stem(X, y),
    "arrows": lambda ax, y: ax.quiver(X, X, y, X),
    "pie": lambda ax, y: ax.pie(np.abs(y[10:60:10]) + 0.1),
    "box": lambda ax, y: ax.boxplot([y]),
    "violin": lambda ax, y: ax.violinplot([y]),
    "inset": lambda ax, y: ax.inset_axes([0.5, 0.5, 0.4, 0.4]).plot(X, y),
    "direct label": lambda ax, y: ax.text(0.5, 0.5, f"slope {y[30]:.3f}"),
    "annotation": lambda ax, y: ax.annotate(f"{y[30]:.3f}", (0, 0), (1, 1)),
    "legend": lambda ax, y: ax.plot(X, X, label=f"{y[30]:.3f}") and ax.legend(),
    "tick labels": lambda ax, y: ax.set_xticks([0, 1], ["a", f"{y[30]:.3f}"]),
    "3D line": lambda ax, y: ax.figure.add_subplot(projection="3d").plot(X, X, y),
}
Y = np.sin(5 * X) + 0.01


@pytest.mark.parametrize("kind", PLOTS)
def test_a_changed_curve_changes_the_digest(kind: str):
    first = drawn(lambda ax: PLOTS[kind](ax, Y))
    wrong = drawn(lambda ax: PLOTS[kind](ax, np.cos(5 * X) + 0.01))
    assert not same_to_nbval(first, wrong)


@pytest.mark.parametrize("kind", PLOTS)
def test_rounding_noise_does_not(kind: str):
    first = drawn(lambda ax: PLOTS[kind](ax, Y))
    noisy = drawn(lambda ax: PLOTS[kind](ax, Y * (1 + NOISE)))
    assert same_to_nbval(first, noisy)


def test_noise_around_zero_reads_as_zero():
    text = drawn(lambda ax: ax.plot(X, np.where(X < 0.5, NOISE, 1.0)))
    assert "min=0.000 max=1.000" in text
    assert "at=[0.000 0.000 1.000" in text


def test_noise_beside_the_axis_reads_as_zero():
    tiny = drawn(lambda ax: ax.plot(X, NOISE), ylim=(-1, 1))
    assert same_to_nbval(tiny, drawn(lambda ax: ax.plot(X, -2 * NOISE), ylim=(-1, 1)))
    small = drawn(lambda ax: ax.plot(X, 1e-6 * X), ylim=(-1, 1))
    assert not same_to_nbval(tiny, small)


def test_a_local_change_between_the_sampled_points_is_seen():
    bump = Y + 0.2 * (np.abs(X - 0.6) < 0.03)
    assert bump.max() == Y.max()
    assert not same_to_nbval(
        drawn(lambda ax: ax.plot(X, Y)), drawn(lambda ax: ax.plot(X, bump))
    )


@pytest.mark.parametrize(
    "change",
    [
        {"xlabel": "other"},
        {"ylabel": "other"},
        {"title": "other"},
        {"xscale": "log"},
        {"yscale": "symlog"},
    ],
)
def test_labels_and_scales_count(change: dict[str, str]):
    labels = {"xlabel": "x", "ylabel": "y", "title": "t"}
    first = drawn(lambda ax: ax.plot(X, Y), **labels)
    assert first != drawn(lambda ax: ax.plot(X, Y), **(labels | change))


def test_names_count_but_not_matplotlibs_own():
    assert "line 'legs':" in drawn(lambda ax: ax.plot(X, Y, label="legs"))
    assert "line: x" in drawn(lambda ax: ax.plot(X, Y))
    assert "bars 'mine':" in drawn(lambda ax: ax.bar([1, 2], [3, 4], label="mine"))


def test_order_of_curves_counts():
    one = drawn(lambda ax: ax.plot(X, Y) and ax.plot(X, -Y))
    two = drawn(lambda ax: ax.plot(X, -Y) and ax.plot(X, Y))
    assert not same_to_nbval(one, two)


def test_text_of_the_figure_counts():
    fig, axes = plt.subplots(1, 2)
    fig.suptitle("Above all")
    fig.supxlabel("shared x")
    fig.text(0.5, 0.5, "a note")
    axes[0].plot(X, Y, label="legs")
    axes[1].set_title("middle", loc="center")
    fig.legend()
    text = digest(fig)
    for words in ("Above all", "shared x", "a note", "axes 1 'middle'"):
        assert words in text
    assert "figure legend: legs" in text


def test_digest_is_the_same_before_and_after_drawing():
    fig, ax = plt.subplots()
    ax.bar(["a", "b"], [1, 2])
    ax.errorbar([0, 1], [1, 2], yerr=0.1, label="e")
    ax.legend()
    before = digest(fig)
    fig.canvas.draw()
    assert digest(fig) == before


# --- pictures ------------------------------------------------------------------------


def simple() -> Figure:
    fig, ax = plt.subplots()
    ax.plot(X, Y)
    return fig


@pytest.mark.parametrize("colors", [None, 48])
def test_png_bytes_are_the_same_twice(colors: int | None):
    first, second = png(simple(), colors=colors), png(simple(), colors=colors)
    assert first == second
    assert first.startswith(b"\x89PNG")
    assert b"matplotlib" not in first.lower()
    assert plt.get_fignums() == []


def test_png_reduces_colours_and_size():
    full, small = png(simple(), dpi=80), png(simple(), dpi=80, colors=48)
    assert len(small) < len(full)
    image = Image.open(io.BytesIO(small))
    assert image.size == (576, 256)
    assert len(image.convert("RGB").getcolors()) <= 48


def test_the_ground_is_opaque():
    # A transparent figure with black text is unreadable on a dark page.
    with mpl.rc_context({"figure.facecolor": "none", "savefig.facecolor": "none"}):
        style()
        image = Image.open(io.BytesIO(png(simple()))).convert("RGBA")
    assert image.getchannel("A").getextrema() == (255, 255)
    assert image.getpixel((0, 0)) == (255, 255, 255, 255)


Shown = list[tuple[dict[str, Any], dict[str, Any]]]


def test_show(shown: Shown):
    text = digest(fig := simple())
    show(fig, "A sine that rises and then falls.")
    ((bundle, metadata),) = shown
    assert set(bundle) == {"image/png", "text/plain"}
    assert base64.b64decode(bundle["image/png"]) == png(simple())
    assert bundle["text/plain"] == f"Figure: A sine that rises and then falls.\n{text}"
    alt = {"alt": "A sine that rises and then falls.", "width": 720}
    assert metadata == {"image/png": alt}
    assert plt.get_fignums() == []


@pytest.mark.parametrize("alt", ["", "A figure", "  one two three  "])
def test_show_refuses_a_short_alt_text_and_leaves_nothing_open(shown: Shown, alt: str):
    with pytest.raises(ValueError, match="too short: say in a sentence what is shown"):
        show(simple(), alt)
    assert shown == []
    assert plt.get_fignums() == []


def test_show_closes_a_figure_that_cannot_be_drawn(shown: Shown):
    fig = simple()
    fig.axes[0].set_title("$\\nonsense{$")
    with pytest.raises(ValueError, match="nonsense"):
        show(fig, "A title that cannot be set.")
    assert plt.get_fignums() == []
    assert shown == []


# --- colours -------------------------------------------------------------------------

# Machado, Oliveira and Fernandes (2009), severity 1.0, on linear RGB.
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
}


def lab(color: str, blindness: str) -> np.ndarray:
    """CIELAB of a colour as somebody with a colour vision deficiency sees it."""
    srgb = np.array(matplotlib.colors.to_rgb(color))
    linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(np.asarray(BLINDNESS[blindness]) @ linear, 0, 1)
    to_xyz = np.array(
        [
            [0.4124, 0.3576, 0.1805],
            [0.2126, 0.7152, 0.0722],
            [0.0193, 0.1192, 0.9505],
        ]
    )
    ratio = to_xyz @ linear / to_xyz.sum(1)
    f = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("blindness", BLINDNESS)
def test_the_palette_stays_apart(blindness: str):
    # A difference of 2.3 in CIELAB is just noticeable; six of these tell lines apart.
    seen = {name: lab(color, blindness) for name, color in COLORS.items()}
    near = {
        (a, b): distance
        for a, b in itertools.combinations(COLORS, 2)
        if (distance := float(np.linalg.norm(seen[a] - seen[b]))) < 14
    }
    assert near == {}


def test_the_simulation_finds_a_bad_palette():
    red, green = (lab(color, "deuteranopia") for color in ("#b04000", "#707000"))
    assert np.linalg.norm(red - green) < 15
    healthy = [lab(color, "none") for color in ("#b04000", "#707000")]
    assert np.linalg.norm(healthy[0] - healthy[1]) > 40


def test_every_line_is_seen_on_white():
    # WCAG asks graphics for a contrast of 3; two light colours serve for areas only.
    light = {"sky", "amber", "pink"}
    assert {name for name, c in COLORS.items() if lab(c, "none")[0] > 60} == light


def test_style_cycles_through_the_palette_and_can_be_called_twice():
    style()
    assert mpl.rcParams["axes.prop_cycle"].by_key()["color"] == list(COLORS.values())
    assert mpl.rcParams["savefig.facecolor"] == "white"
