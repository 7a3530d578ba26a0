from planted import Planted

FAULTS = (
    Planted(
        "the sign of sin",
        "left * c - right * s, left",
        "left * c + right * s, left",
        "Qwen2 heads",
        "wrong",
    ),
    Planted(
        "values are rotated",
        "tl.where(rotated, left * c - right * s, left)",
        "left * c - right * s",
        "Qwen2 heads",
        "wrong",
    ),
    Planted(
        "channels without a mask",
        "inside = (unit < units) & (channel < half)",
        "inside = unit < units",
        "head dim 14",
        "outside|race",
    ),
    Planted(
        "the tables' rows lie dense",
        "cos + position * cos_stride * VECTOR",
        "cos + position * half",
        "gaps everywhere",
        "wrong",
    ),
    Planted(
        "32-bit offsets",
        "tl.program_id(0).to(tl.int64)",
        "tl.program_id(0)",
        "third row past 2^31",
        "outside|wrong",
    ),
)
