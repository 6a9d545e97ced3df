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

from lib.kit.figures import digest, png

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LARGEST = 96  # pictures; more would not fit a notebook of two megabytes


def _image(data: bytes, alt: str) -> str:
    code = base64.b64encode(data).decode()
    return (
        f'<img src="data:image/png;base64,{code}" alt="{html.escape(alt, quote=True)}" '
        'style="max-width:100%;height:auto">'
    )


def _knob(widgets: Any, name: str, values: Sequence[Any]) -> Any:
    """A slider over numbers, a drop-down over words; both have an `index`."""
    options = [(str(value), value) for value in values]
    layout = widgets.Layout(width="min(30em, 95%)")
    kind = widgets.Dropdown if isinstance(values[0], str) else widgets.SelectionSlider
    return kind(
        options=options,
        description=name.replace("_", " "),
        style={"description_width": "9em"},
        layout=layout,
    )


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
    Raises ValueError when there are too many combinations or the default is unknown.
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
    pictures, lines, alts = {}, [], {}
    for values in states:
        state = dict(zip(names, values, strict=True))
        fig = draw(**state)
        alts[values] = alt.format(**state)
        shown = digest(fig)
        if state == first:
            text = f"Explorer: {alts[values]}\n{shown}"
            lines.append(f"state {state}: shown above")
        else:
            curves = [line.strip() for line in shown.splitlines() if " y n=" in line]
            lines += [f"state {state}: {curve}" for curve in curves[-1:]]
        pictures[values] = png(fig, dpi=dpi, colors=48)
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
    for control, value in zip(controls, here, strict=True):
        control.value = value
    if (
        getattr(widgets, "Stack", None) is None
    ):  # ipywidgets 7: Python swaps the picture
        view = widgets.HTML(_image(pictures[here], alts[here]))

        def swap(_: Any) -> None:
            state = tuple(control.value for control in controls)
            view.value = _image(pictures[state], alts[state])

        for control in controls:
            control.observe(swap, names="value")
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
