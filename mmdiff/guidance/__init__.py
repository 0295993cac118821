"""Guidance: the algebra on denoisers (combine.py), and the guides that a config names (guides.py)."""

from mmdiff.guidance.combine import Scale, apg, away, cfg, chained, clamped, given, squeezed
from mmdiff.guidance.guides import (
    GUIDES,
    Guide,
    Ramp,
    Views,
    as_guide,
    auto,
    dynamic_threshold,
    image_and_text,
    isolation,
    laid_out,
    plain,
    projected,
    shallow,
    static_threshold,
)

__all__ = [
    "GUIDES",
    "Guide",
    "Ramp",
    "Scale",
    "Views",
    "apg",
    "as_guide",
    "auto",
    "away",
    "cfg",
    "chained",
    "clamped",
    "dynamic_threshold",
    "given",
    "image_and_text",
    "isolation",
    "laid_out",
    "plain",
    "projected",
    "shallow",
    "squeezed",
    "static_threshold",
]
