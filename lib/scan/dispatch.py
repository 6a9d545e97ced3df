"""Which backend serves a call, and why not a faster one.

The fused kernels (`lib.scan.cpu`, `lib.scan.gpu`) are imported when first asked for.
"auto" takes the one of the tensors' device if it can serve the call, else plain torch;
it then says why once, on the logger "lib.scan" (INFO), and warns only of what a user
can mend: a C kernel that could not be built.
"""

from __future__ import annotations

import logging
import os
import warnings
from types import ModuleType

import torch
from torch import Tensor

from lib.kit.checks import choice, need
from lib.scan import associative, chunked, reference

PLAIN = {"reference": reference, "associative": associative, "chunked": chunked}
FUSED = {"cpu": "cpu", "triton": "cuda"}  # and the device that each serves
BACKENDS = ("auto", *PLAIN, *FUSED)
VARIABLE = "LIB_SCAN_BACKEND"
WIDTH = 3  # channels a group from which the C kernel is faster (measured)

_log = logging.getLogger("lib.scan")
_said: list[str] = []  # reasons already given, the last one last


def _module(name: str) -> ModuleType | str:
    """A fused backend, or a sentence why it is not there."""
    try:
        if name == "cpu":
            from lib.scan import cpu as found
        else:
            from lib.scan import gpu as found
    except ImportError as error:
        return f"The backend {name!r} cannot be imported: {error}."
    return found


def module(name: str) -> ModuleType:
    """The module of a backend that `pick` has named."""
    return PLAIN.get(name) or _module(name)


def absent(name: str, call: str = "selective") -> str | None:
    """Why a fused backend cannot be used on this machine; None if it can.

    call: for what; the C kernels are built from a file each, one of which may fail.
    """
    found = _module(name)
    if isinstance(found, str):
        return found
    return found.unavailable(call) if name == "cpu" else found.unavailable()


def refusal(
    name: str, call: str, x: Tensor, A: Tensor, B: Tensor, rule: str = "euler"
) -> str | None:
    """Why a fused backend cannot serve this call; None if it can."""
    device = FUSED[name]
    if x.device.type != device:
        return f"The backend {name!r} takes tensors on {device}, not on {x.device}."
    half = (torch.bfloat16,) if call != "linear" else ()
    if x.dtype not in (torch.float32, *half) or A.is_complex():
        return (
            f"The backend {name!r} takes real float32"
            f"{' or bfloat16' if half else ''}, not {x.dtype}"
            f"{' with a complex A' if A.is_complex() else ''}."
        )
    why = absent(name, call)
    if why is not None:
        return why
    if not hasattr(_module(name), call):
        return f"The backend {name!r} has no kernel for this call ({call}) yet."
    return None if call == "linear" else _module(name).unsupported(x, A, B, rule)


def pick(backend: str, call: str, core: tuple, rule: str = "euler") -> str:
    """The name of the backend that serves a call.

    backend: asked for; call: "selective", "ssd" or "linear"; core: its arguments.
    Raises ValueError for an unknown name or a named backend that cannot serve.
    """
    choice("The backend", backend, BACKENDS)
    a, b = core[:2]
    x, A, B = (b, a, b) if call == "linear" else (core[0], core[2], core[3])
    if backend in PLAIN:
        return backend
    if backend in FUSED:
        why = refusal(backend, call, x, A, B, rule)
        hint = "Take backend='auto', or one of " + ", ".join(PLAIN) + "."
        need(why is None, f"{why} {hint}")
        return backend
    narrow = _narrow(core) if call == "selective" else None
    return _auto(call, x, A, B, rule, narrow)


def _narrow(core: tuple) -> str | None:
    """Why the C kernel would be slower: too few channels share their B and C."""
    width = core[0].shape[2] // max(core[3].shape[2], core[4].shape[2], 1)
    if width >= WIDTH or core[0].shape[2] < WIDTH:
        return None
    return f"The backend 'cpu' is slow where channels come in groups of {width}."


def _auto(
    call: str, x: Tensor, A: Tensor, B: Tensor, rule: str, narrow: str | None
) -> str:
    """The fastest backend that can serve, or the one that the environment names."""
    wish = os.environ.get(VARIABLE, "auto")
    choice(f"The environment's {VARIABLE}", wish, BACKENDS)
    if wish in PLAIN:
        return wish
    for name, device in FUSED.items():
        if wish != name and (wish != "auto" or x.device.type != device):
            continue
        why = narrow if name == "cpu" and wish == "auto" else None
        why = why or refusal(name, call, x, A, B, rule)
        if why is None:
            return name
        mend = wish == "auto" and name == "cpu" and _unbuilt(why, call)
        _say(f"{why} Plain torch serves instead.", mend)
    return _plain(call, x, A)


def _plain(call: str, x: Tensor, A: Tensor) -> str:
    """The faster of the plain backends: matrix products, few rounds, or little memory.

    On a CPU `chunked` wins while all its states stay in the cache (measured: half a
    million of them), and the loop, which keeps one state, beyond.
    """
    states = x.numel() * (A.shape[1] if call == "selective" else 1)
    fits = x.device.type != "cpu" or states <= 2**19
    return "chunked" if call == "ssd" or fits else "reference"


def _unbuilt(why: str, call: str) -> bool:
    """Whether the kernel is missing because it could not be built: to be mended."""
    chosen = os.environ.get("LIB_SCAN_KERNEL") == "0"  # see lib.scan.build
    found = _module("cpu")
    return (
        not chosen and isinstance(found, ModuleType) and why == found.unavailable(call)
    )


def _say(reason: str, mend: bool) -> None:
    """Give a reason once: to the log, and as a warning where the user can mend it."""
    if reason in _said:
        _said.append(_said.pop(_said.index(reason)))
        return
    _said.append(reason)
    _log.info(reason)
    if mend:
        hint = f"Set {VARIABLE}=chunked to choose that without a warning."
        warnings.warn(f"{reason} {hint}", UserWarning, stacklevel=5)


def backend_info() -> dict[str, str]:
    """Which backends can be used here, and why not the others.

    Returns a sentence for each backend, and under "auto" the last reason for which it
    took a slower one (or that there was none). The first call builds the C kernel.
    """
    info = {name: "available" for name in PLAIN}
    info |= {name: absent(name) or "available" for name in FUSED}
    wish = os.environ.get(VARIABLE)
    last = _said[-1] if _said else "has not fallen back"
    return info | {"auto": f"{VARIABLE}={wish}" if wish else last}
