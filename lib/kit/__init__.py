"""What every notebook uses: parameters, claims, figures, explorers, results, cache.

Importing the kit needs nothing beyond numpy; heavier packages are imported by the
function that uses them, so that a notebook starts in a moment.
"""

from lib.kit.audio import audio
from lib.kit.cache import CacheError, cached, download, shipped
from lib.kit.checks import choice, count, need
from lib.kit.claims import ClaimError, Claims, say
from lib.kit.collection import collection_map
from lib.kit.exercises import exercise
from lib.kit.explorers import explorer
from lib.kit.figures import COLORS, digest, show, style
from lib.kit.parameters import ParameterError, check
from lib.kit.results import (
    recorded,
    results_table,
    save_table,
    scoreboard,
    show_benchmark,
    show_recorded,
)
from lib.kit.start import ROOT, device, seed_everything, start

__all__ = [
    "COLORS",
    "ROOT",
    "CacheError",
    "ClaimError",
    "Claims",
    "ParameterError",
    "audio",
    "cached",
    "check",
    "choice",
    "collection_map",
    "count",
    "device",
    "digest",
    "download",
    "exercise",
    "explorer",
    "need",
    "recorded",
    "results_table",
    "save_table",
    "say",
    "scoreboard",
    "seed_everything",
    "shipped",
    "show",
    "show_benchmark",
    "show_recorded",
    "start",
    "style",
]
