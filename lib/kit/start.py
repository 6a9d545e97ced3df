"""What a notebook's set-up cell calls: packages, figure style, seeds, devices."""

from __future__ import annotations

import os
import platform
import random
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]


def notebook_packages(environment: Path = ROOT / "environment.yml") -> list[str]:
    """Names of the packages that notebooks import: the list's first group."""
    names, inside = [], False
    for line in environment.read_text(encoding="utf-8").splitlines():
        text = line.strip()
        if text.startswith("# -- "):
            inside = "a notebook imports" in text
        elif inside and text.startswith("- "):
            names.append(text[2:].split("==")[0])
    return names


def missing_packages(environment: Path = ROOT / "environment.yml") -> list[str]:
    """Names of the packages that notebooks import and this Python does not have."""

    def absent(name: str) -> bool:
        try:
            metadata.version(name)
        except metadata.PackageNotFoundError:
            return True
        return False

    return [name for name in notebook_packages(environment) if absent(name)]


def start(install_missing: bool = False) -> None:
    """Prepare a notebook: house style for figures and, if asked, what is missing.

    install_missing: True where the set-up cell had to fetch the collection (Colab, a
    single downloaded file). Only absent packages are installed; none is upgraded,
    because upgrading numpy under a running kernel breaks it.
    """
    if install_missing and (names := missing_packages()):
        command = [sys.executable, "-m", "pip", "install", "--quiet", *names]
        if subprocess.run(command).returncode:
            raise RuntimeError(
                f"pip could not install {', '.join(names)}: check the network and run "
                "this cell again."
            )
    from lib.kit.figures import style

    style()


def seed_everything(seed: int) -> np.random.Generator:
    """Seed Python, numpy and torch; return a numpy generator with the same seed."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read at first use
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 (what libraries draw from)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True, warn_only=True)
    return np.random.default_rng(seed)


def device(name: str = "auto"):
    """Return the torch device of that name; "auto" takes CUDA, MPS or the CPU."""
    import torch

    if name == "auto":
        if torch.cuda.is_available():
            name = "cuda"
        else:
            name = "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        chosen = torch.device(name)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise RuntimeError(
            f"the device {name!r} cannot be used here ({str(error).splitlines()[0]}): "
            "take 'auto', 'cpu', 'cuda' or 'mps'."
        ) from None
    return chosen


def fixed_environment() -> dict[str, str]:
    """Variables that make a run the same on every x86-64 machine, set before a kernel.

    One thread, a fixed hash seed, and the AVX2 code paths of torch, MKL, OpenBLAS,
    oneDNN, numpy and lib.scan, so that sums are taken in the same order everywhere.
    """
    threads = ("OMP", "MKL", "OPENBLAS", "NUMEXPR", "VECLIB_MAXIMUM")
    fixed = {f"{name}_NUM_THREADS": "1" for name in threads}
    fixed |= {
        "PYTHONHASHSEED": "0",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_CBWR": "COMPATIBLE",
        "OPENBLAS_CORETYPE": "Haswell",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if platform.machine() in ("x86_64", "AMD64"):
        fixed["LIB_SCAN_MARCH"] = "x86-64-v3"  # the collection's own C kernels
        if wide := wide_features():
            fixed["NPY_DISABLE_CPU_FEATURES"] = " ".join(wide)
    return fixed


def wide_features() -> list[str]:
    """The instruction sets beyond AVX2 that this numpy would use on this machine."""
    from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

    return sorted(
        name
        for name in __cpu_dispatch__
        if __cpu_features__.get(name)
        if name.startswith(("AVX512", "X86_V4", "AVX10"))
    )
