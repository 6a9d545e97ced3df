"""Explorers: a few knobs over pictures drawn ahead, linked without Python.

Every state is drawn once; sliders select among the pictures in the browser (`jslink`
and `Stack`), so an explorer moves in JupyterLab, in Colab and on a static page. Where
there is no front end, or no widget support, the same output is a normal figure.
"""

from __future__ import annotations

import base64
import html
import itertools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from lib.kit.figures import check_alt, digest, png, short_digest

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LARGEST = 96  # pictures
LARGEST_SIZE = 1_200_000  # characters of all pictures; a notebook has two megabytes


def _image(data: bytes, alt: str) -> str:
    code = base64.b64encode(data).decode()
    return (
        f'<img src="data:image/png;base64,{code}" alt="{html.escape(alt, quote=True)}" '
        'style="max-width:100%;height:auto">'
    )


def _knob(widgets: Any, name: str, values: Sequence[Any]) -> Any:
    """A slider over numbers, a drop-down over words; both have an `index`."""
    # The options stand for their places: None, equal or odd values select as well.
    options = [(str(value), place) for place, value in enumerate(values)]
    layout = widgets.Layout(width="min(30em, 95%)")
    kind = widgets.Dropdown if isinstance(values[0], str) else widgets.SelectionSlider
    return kind(
        options=options,
        description=name.replace("_", " "),
        style={"description_width": "9em"},
        layout=layout,
    )


def _alt(alt: str, names: list[str], values: tuple) -> str:
    try:
        said = alt.format(**dict(zip(names, values, strict=True)))
    except (KeyError, IndexError) as error:
        raise ValueError(
            f"the alt text {alt!r} names {error}, but the knobs are {', '.join(names)}."
        ) from None
    check_alt(said)
    return said


def _drawn(draw: Callable[..., Figure], state: dict[str, Any]) -> Figure:
    from matplotlib.figure import Figure

    fig = draw(**state)
    if not isinstance(fig, Figure):
        raise TypeError(
            f"draw returned {type(fig).__name__} for {state}, but must return its "
            "figure."
        )
    return fig


def explorer(
    draw: Callable[..., Figure],
    alt: str,
    default: dict[str, Any] | None = None,
    dpi: float = 80,
    **knobs: Sequence[Any],
) -> None:
    """Display sliders over `draw(**state)` for every combination of the knobs' values.

    draw: takes one value of each knob and returns a figure. alt: a format string over
    the knobs that describes a state, such as "Memory of {measure} with N = {N}".
    default: the state shown first (else each knob's first value). knobs: name=values.
    Raises ValueError when there are too many combinations or too large pictures, when
    the default is unknown, or when the alt text names another knob.
    """
    names = list(knobs)
    states = list(itertools.product(*knobs.values()))
    if not 1 < len(states) <= LARGEST:
        raise ValueError(
            f"an explorer draws every combination of its knobs ahead: these make "
            f"{len(states)}, and 2 to {LARGEST} are possible. Offer fewer values."
        )
    first = default or {name: values[0] for name, values in knobs.items()}
    if set(first) != set(names) or any(first[n] not in knobs[n] for n in names):
        raise ValueError(
            f"the default {first} is not a combination of the knobs' values."
        )
    alts = {values: _alt(alt, names, values) for values in states}
    pictures, lines, size = {}, [], 0
    for values in states:
        state = dict(zip(names, values, strict=True))
        words = ", ".join(f"{name}={value}" for name, value in state.items())
        fig = _drawn(draw, state)
        if state == first:
            text = f"Explorer: {alts[values]}\n{digest(fig)}"
            lines.append(f"{words}: shown above")
        else:
            lines += [f"{words}: {line}" for line in short_digest(fig)]
        pictures[values] = png(fig, dpi=dpi, colors=48)
        size += len(pictures[values]) * 4 // 3
    if size > LARGEST_SIZE:
        raise ValueError(
            f"the {len(states)} pictures of this explorer take {size / 1e6:.1f} MB, "
            f"and {LARGEST_SIZE / 1e6:.1f} MB are possible. Offer fewer values, or "
            f"take a smaller dpi than {dpi:g}."
        )
    here = tuple(first[name] for name in names)
    _display(
        names, knobs, pictures, alts, here, "\n".join([text, "all states:", *lines])
    )


def _display(
    names: list[str],
    knobs: dict[str, Sequence[Any]],
    pictures: dict[tuple, bytes],
    alts: dict[tuple, str],
    here: tuple,
    text: str,
) -> None:
    from IPython.display import display

    bundle = {
        "image/png": base64.b64encode(pictures[here]).decode(),
        "text/plain": text,
    }
    try:
        import ipywidgets as widgets
    except ImportError:
        widgets = None
    if widgets is not None:
        box = _linked(widgets, names, knobs, pictures, alts, here)
        bundle["application/vnd.jupyter.widget-view+json"] = {
            "version_major": 2,
            "version_minor": 0,
            "model_id": box.model_id,
        }
    display(bundle, raw=True, metadata={"image/png": {"alt": alts[here]}})


def _linked(
    widgets: Any,
    names: list[str],
    knobs: dict[str, Sequence[Any]],
    pictures: dict[tuple, bytes],
    alts: dict[tuple, str],
    here: tuple,
) -> Any:
    """The widget tree: one knob a level, and below the last knob the pictures."""
    controls = [_knob(widgets, name, knobs[name]) for name in names]
    for name, control, value in zip(names, controls, here, strict=True):
        control.index = list(knobs[name]).index(value)
    if getattr(widgets, "Stack", None) is None:
        # ipywidgets 7 has no stack of pictures: Python swaps the one that is there.
        view = widgets.HTML(_image(pictures[here], alts[here]))

        def swap(_: Any) -> None:
            state = tuple(
                knobs[name][control.index]
                for name, control in zip(names, controls, strict=True)
            )
            view.value = _image(pictures[state], alts[state])

        for control in controls:
            control.observe(swap, names="index")
        return widgets.VBox([*controls, view])
    shared = widgets.Layout()

    def level(prefix: tuple) -> Any:
        depth = len(prefix)
        if depth == len(names):
            return widgets.HTML(_image(pictures[prefix], alts[prefix]), layout=shared)
        children = [level((*prefix, value)) for value in knobs[names[depth]]]
        index = controls[depth].index
        stack = widgets.Stack(children, selected_index=index, layout=shared)
        widgets.jslink((controls[depth], "index"), (stack, "selected_index"))
        return stack

    return widgets.VBox([*controls, level(())])
