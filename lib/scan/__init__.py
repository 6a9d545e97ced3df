"""One recurrence, h_t = a_t h_{t-1} + b_t, and the algorithms that run it.

`selective_scan` (Mamba), `ssd` (Mamba-2) and `linear_scan` (S5, LRU) with packing,
padding, initial and last states and every gradient; `step` and `ssd_step` for
generation. Backends: "reference" (a loop), "associative" (a doubling scan), "chunked"
(matrix products), "cpu" (fused C) and "triton" (fused GPU); `backend_info` tells which
are available. Importing this neither compiles nor imports a kernel.
"""

from lib.scan.api import linear_scan, selective_scan, ssd, ssd_step, step
from lib.scan.dispatch import BACKENDS, backend_info

__all__ = [
    "BACKENDS",
    "backend_info",
    "linear_scan",
    "selective_scan",
    "ssd",
    "ssd_step",
    "step",
]
