"""Noise processes, prediction targets and draws of t: the conventions of the whole house.

`x0` is data, `noise` ~ N(0, I), `t` in [0, 1] with t=0 data and t=1 noise, and `x = a(t) x0 + s(t) noise`. A process is
the row (a, s) with `process(0) == (1, 0)` exactly; a target is the row (p, q): the network predicts
`y = p x0 + q noise`.
"""

from mmdiff.process.draws import Draw, LogitNormal, LogNormal, LossAware, Shifted, Stratified, Uniform, shift
from mmdiff.process.paths import (
    DDPM,
    EDM,
    SVD,
    Cosine,
    Denoise,
    Linear,
    Process,
    Row,
    ScaledLinear,
    ShiftedSNR,
    ZeroTerminal,
    time_of,
)
from mmdiff.process.rows import TARGETS, mix, to_noise, to_x0, widen

__all__ = [
    "DDPM",
    "EDM",
    "SVD",
    "TARGETS",
    "Cosine",
    "Denoise",
    "Draw",
    "Linear",
    "LogNormal",
    "LogitNormal",
    "LossAware",
    "Process",
    "Row",
    "ScaledLinear",
    "Shifted",
    "ShiftedSNR",
    "Stratified",
    "Uniform",
    "ZeroTerminal",
    "mix",
    "shift",
    "time_of",
    "to_noise",
    "to_x0",
    "widen",
]
