"""The GPUs that launch plans are tested for, and the architectures kernels are compiled for."""

from __future__ import annotations

from flashvl_kernels.gpu import A100, B200, H100, KIB, L4, RTX_4090, Device

__all__ = ["A100", "ARCHITECTURES", "B200", "DEVICES", "H100", "KIB", "L4", "RTX_4090", "Device"]

DEVICES = (H100, A100, L4, RTX_4090, B200)
ARCHITECTURES = (80, 86, 89, 90, 100, 120)
"""What every kernel is compiled for."""
