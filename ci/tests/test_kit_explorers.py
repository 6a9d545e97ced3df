"""Tests of kit.explorers: one picture a state, linked without Python if possible."""

import base64
import builtins
import io
import itertools
import re
from collections.abc import Callable, Iterator
from typing import Any

import ipywidgets
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from lib.kit import explorers
from lib.kit.explorers import explorer
from lib.kit.figures import style

X = np.linspace(0, 1, 200)
VIEW = "application/vnd.jupyter.widget-view+json"
ALT = "A wave of {shape} shape with N = {N}."


@pytest.fixture(autouse=True)
def _house_style() -> Iterator[None]:
    with mpl.rc_context():
        mpl.use("agg")
        style()
        yield
    plt.close("all")


def wave(shape: str = "sine", N: int = 1) -> Figure:
    fig, ax = plt.subplots()
    ax.plot(X, {"sine": np.sin, "cosine": np.cos}[shape](N * X), label=shape)
    ax.axhline(0)
    return fig


class Shown:
    """What one explorer displayed: its bundle, metadata and widget tree."""

    def __init__(self, bundle: dict[str, Any], metadata: dict[str, Any]) -> None:
        self.bundle, self.metadata = bundle, metadata
        self.text = bundle["text/plain"]
        self.picture = base64.b64decode(bundle["image/png"])

    @property
    def box(self) -> Any:
        model = self.bundle[VIEW]["model_id"]
        return next(w for w in every_widget() if w.model_id == model)


def every_widget() -> list[Any]:
    known = getattr(ipywidgets.widgets.widget, "_instances", None)
    if known is None:  # ipywidgets 7
        known = ipywidgets.Widget.widgets
    return list(known.values())


Display = Callable[..., Shown]


@pytest.fixture
def explore(monkeypatch: pytest.MonkeyPatch) -> Display:
    """Run an explorer and return what it displayed; it must display once."""
    calls: list[Shown] = []

    def display(bundle: dict[str, Any], raw: bool, metadata: dict[str, Any]) -> None:
        calls.append(Shown(bundle, metadata))

    monkeypatch.setattr("IPython.display.display", display)

    def run(draw: Any = wave, alt: str = ALT, **words: Any) -> Shown:
        calls.clear()
        explorer(draw, alt, **words)
        (call,) = calls
        return call

    return run


def image(widget: Any) -> bytes:
    found = re.search(r"base64,([^\"]+)", widget.value)
    return base64.b64decode(found[1])


STATES = {"shape": ["sine", "cosine"], "N": [1, 5, 9]}
stacked = pytest.mark.skipif(
    not hasattr(ipywidgets, "Stack"), reason="ipywidgets 7 has no stack of pictures"
)


# --- linked without Python -----------------------------------------------------------


@stacked
def test_one_picture_a_state_at_its_place(explore: Display):
    shape, N, stack = explore(**STATES).box.children
    assert isinstance(shape, ipywidgets.Dropdown)
    assert isinstance(N, ipywidgets.SelectionSlider)
    assert [label for label, _ in N.options] == ["1", "5", "9"]
    assert [label for label, _ in shape.options] == STATES["shape"]
    pictures = [[image(leaf) for leaf in inner.children] for inner in stack.children]
    assert [len(row) for row in pictures] == [3, 3]
    assert len(set(itertools.chain(*pictures))) == 6
    for i, word in enumerate(STATES["shape"]):
        for j, n in enumerate(STATES["N"]):
            leaf = stack.children[i].children[j]
            assert f'alt="A wave of {word} shape with N = {n}."' in leaf.value


@stacked
def test_links_join_index_and_picture_in_the_browser(explore: Display):
    before = {w.model_id for w in every_widget()}
    shape, N, stack = explore(**STATES).box.children
    links = [
        w
        for w in every_widget()
        if isinstance(w, ipywidgets.widgets.widget_link.Link)
        and w.model_id not in before
    ]
    joined = {(w.source[0], w.source[1], w.target[0], w.target[1]) for w in links}
    assert joined == {
        (shape, "index", stack, "selected_index"),
        (N, "index", stack.children[0], "selected_index"),
        (N, "index", stack.children[1], "selected_index"),
    }


@stacked
def test_the_default_state_is_selected_everywhere(explore: Display):
    shown = explore(**STATES, default={"N": 5, "shape": "cosine"})
    shape, N, stack = shown.box.children
    assert (shape.label, N.label) == ("cosine", "5")
    assert stack.selected_index == 1
    assert [inner.selected_index for inner in stack.children] == [1, 1]
    assert shown.picture == image(stack.children[1].children[1])
    assert shown.metadata == {
        "image/png": {"alt": "A wave of cosine shape with N = 5."}
    }
    assert shown.text.startswith("Explorer: A wave of cosine shape with N = 5.\naxes 0")


def test_without_a_default_the_first_values_are_shown(explore: Display):
    shown = explore(**STATES)
    assert shown.metadata["image/png"]["alt"] == "A wave of sine shape with N = 1."


def test_a_single_knob_with_numbers_that_look_alike(explore: Display):
    shown = explore(
        lambda scale: wave("sine", scale),
        "A wave of scale {scale}.",
        scale=(0.5, 1, 2.0),
    )
    knob = shown.box.children[0]
    assert [label for label, _ in knob.options] == ["0.5", "1", "2.0"]
    assert knob.description == "scale"


def test_switches_and_missing_values(explore: Display):
    def draw(big: bool, depth: int | None) -> Figure:
        return wave("sine", 1 + 4 * big + (depth or 0))

    alt = "A wave, big {big}, depth {depth}."
    shown = explore(draw, alt, big=(False, True), depth=[None, 2], default=None)
    assert shown.metadata["image/png"]["alt"] == "A wave, big False, depth None."
    big, depth = shown.box.children[:2]
    assert (big.label, depth.label) == ("False", "None")


# --- what nbval and a reader without widgets see -------------------------------------


def test_text_holds_every_state(explore: Display):
    text = explore(**STATES).text
    head, _, tail = text.partition("\nall states:\n")
    assert "line 'sine': x 0.000 to 1.000; y n=200" in head
    lines = tail.splitlines()
    assert lines[0] == "shape=sine, N=1: shown above"
    for shape, n in itertools.product(STATES["shape"], STATES["N"]):
        if (shape, n) != ("sine", 1):
            mine = [x for x in lines if x.startswith(f"shape={shape}, N={n}: ")]
            assert [f"line '{shape}'" in x for x in mine] == [True, False]


@pytest.mark.parametrize(
    "plot",
    [
        lambda ax, y: ax.plot(X, y),
        lambda ax, y: (ax.plot(X, y), ax.plot(X, X)),  # not only the last curve
        lambda ax, y: ax.bar(range(3), y[::70]),
        lambda ax, y: ax.imshow(y.reshape(10, 20)),
        lambda ax, y: ax.scatter(X, y),
    ],
)
def test_a_change_in_a_hidden_state_changes_the_text(explore: Display, plot: Any):
    def draw(bug: float, N: int) -> Figure:
        fig, ax = plt.subplots()
        plot(ax, np.sin(N * X) + 1 + (bug if N == 3 else 0) * X)
        return fig

    def text(bug: float) -> str:
        return explore(lambda N: draw(bug, N), "A plot with N = {N}.", N=[1, 2, 3]).text

    assert text(0) == text(0)
    assert text(0) != text(0.5)


def test_the_picture_is_a_small_opaque_png(explore: Display):
    picture = Image.open(io.BytesIO(explore(**STATES).picture))
    assert picture.size == (576, 256)
    assert picture.convert("RGBA").getchannel("A").getextrema() == (255, 255)


@stacked
def test_the_same_explorer_gives_the_same_bytes(explore: Display):
    def leaves(shown: Shown) -> list[str]:
        stack = shown.box.children[-1]
        return [leaf.value for inner in stack.children for leaf in inner.children]

    first, second = explore(**STATES), explore(**STATES)
    assert leaves(first) == leaves(second)
    assert (first.text, first.picture) == (second.text, second.picture)


@stacked
def test_pictures_leave_room_in_a_notebook(explore: Display):
    # Two megabytes a notebook: a usual explorer of 30 states must take under a quarter.
    shown = explore(lambda N: wave("sine", N), "A wave of N = {N}.", N=range(30))
    leaves = shown.box.children[-1].children
    assert len(leaves) == 30
    assert sum(len(leaf.value) for leaf in leaves) < 500_000


def test_alt_text_is_escaped(explore: Display):
    box = explore(alt='A "wave" <{shape}> & N = {N}.', **STATES).box
    leaf = box.children[-1]
    while not hasattr(leaf, "value"):
        leaf = leaf.children[0]
    assert 'alt="A &quot;wave&quot; &lt;sine&gt; &amp; N = 1."' in leaf.value


# --- older or no widgets -------------------------------------------------------------


def test_ipywidgets_7_swaps_the_picture_from_python(
    explore: Display, monkeypatch: pytest.MonkeyPatch
):
    pictures = {}
    if hasattr(ipywidgets, "Stack"):
        stack = explore(**STATES).box.children[-1]
        pictures = {
            (shape, n): image(stack.children[i].children[j])
            for i, shape in enumerate(STATES["shape"])
            for j, n in enumerate(STATES["N"])
        }
        monkeypatch.delattr(ipywidgets, "Stack")
    shape, N, view = explore(**STATES, default={"shape": "sine", "N": 5}).box.children
    assert 'alt="A wave of sine shape with N = 5."' in view.value
    seen = {image(view)}
    N.index = 2
    assert 'alt="A wave of sine shape with N = 9."' in view.value
    seen.add(image(view))
    shape.label = "cosine"
    assert 'alt="A wave of cosine shape with N = 9."' in view.value
    seen.add(image(view))
    assert len(seen) == 3
    if pictures:
        assert image(view) == pictures["cosine", 9]


def test_without_ipywidgets_it_is_a_normal_figure(
    explore: Display, monkeypatch: pytest.MonkeyPatch
):
    with_widgets = explore(**STATES)
    known = builtins.__import__

    def absent(name: str, *rest: Any, **words: Any) -> Any:
        if name.startswith("ipywidgets"):
            raise ImportError("No module named 'ipywidgets'")
        return known(name, *rest, **words)

    monkeypatch.setattr(builtins, "__import__", absent)
    shown = explore(**STATES)
    assert set(shown.bundle) == {"image/png", "text/plain"}
    assert shown.picture == with_widgets.picture
    assert shown.text == with_widgets.text


# --- refusals ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "error", "sentence"),
    [
        ({"shape": ["sine"], "N": range(97)}, ValueError, "these make 97, and 2 to 96"),
        ({"shape": ["sine"], "N": [1]}, ValueError, "these make 1, and 2 to 96"),
        (
            {"shape": ["sine"], "N": []},
            ValueError,
            "these make 0, .* Offer fewer values",
        ),
        ({"alt": "A wave without knobs."}, ValueError, "these make 1, and 2 to 96"),
        (
            STATES | {"default": {"shape": "sine", "N": 2}},
            ValueError,
            "default {'shape': 'sine', 'N': 2} is not a combination",
        ),
        (
            STATES | {"default": {"N": 5}},
            ValueError,
            "is not a combination of the knobs",
        ),
        (
            STATES | {"alt": "A wave of {form} it is."},
            ValueError,
            "names 'form', but the knobs are shape, N",
        ),
        (STATES | {"alt": "A wave of {} it is."}, ValueError, "the knobs are shape, N"),
        (STATES | {"alt": "N = {N}"}, ValueError, "too short: say in a sentence"),
        (STATES | {"draw": lambda **_: None}, TypeError, "draw returned NoneType for"),
    ],
)
def test_refusals(explore: Display, words: Any, error: Any, sentence: str):
    with pytest.raises(error, match=sentence):
        explore(**words)
    assert plt.get_fignums() == []


def test_too_large_pictures_are_refused(
    explore: Display, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(explorers, "LARGEST_SIZE", 20_000)
    with pytest.raises(ValueError, match=r"6 pictures .* MB, .* a smaller dpi than 80"):
        explore(**STATES)


def test_no_figure_stays_open(explore: Display):
    explore(**STATES)
    assert plt.get_fignums() == []
