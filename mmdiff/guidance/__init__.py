"""Guidance: the algebra on denoisers (combine.py), and the guides that a config names (guides.py)."""

from mmdiff.guidance.combine import Scale, apg, away, cfg, chained, clamped, given, squeezed
from mmdiff.guidance.guides import GUIDES, Guide, Ramp, Views, as_guide, laid_out, shallow

__all__ = [
    "GUIDES",
    "Guide",
    "Ramp",
    "Scale",
    "Views",
    "apg",
    "as_guide",
    "away",
    "cfg",
    "chained",
    "clamped",
    "given",
    "laid_out",
    "shallow",
    "squeezed",
]
