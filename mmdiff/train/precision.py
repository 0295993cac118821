"""Which type matrix products are computed in: bf16 where the hardware multiplies it fast, else float32."""

from __future__ import annotations

from pathlib import Path

import torch


def precision(wanted: str, device: torch.device) -> torch.dtype:
    """The type for "bf16", "fp32" or "auto"."""
    if wanted == "auto":
        wanted = "bf16" if _has_bf16(device) else "fp32"
    return torch.bfloat16 if wanted == "bf16" else torch.float32


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    cpu = Path("/proc/cpuinfo")
    return cpu.is_file() and "avx512_bf16" in cpu.read_text()
