"""A reference Flash-VL 2B, built only on the ops of flashvl_kernels."""

from __future__ import annotations

from flashvl.config import FlashVLConfig
from flashvl.fields import ConfigError
from flashvl.model import FlashVL
from flashvl.weight_files import CheckpointError

__all__ = ["CheckpointError", "ConfigError", "FlashVL", "FlashVLConfig"]
