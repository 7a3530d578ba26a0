from planted import Planted

FAULTS = (
    Planted(
        "up read one place early",
        "(column + columns) * stride",
        "(column + columns - 1) * stride",
        "rows",
        "wrong",
    ),
    Planted(
        "columns without a mask",
        "(row < rows) & (column < columns)",
        "row < rows",
        "odd half",
        "outside|race",
    ),
    Planted(
        "32-bit offsets",
        "tl.program_id(0).to(tl.int64)",
        "tl.program_id(0)",
        "third row past 2^31",
        "outside|wrong",
    ),
    Planted(
        "tiles beside each other overlap",
        "program % across * COLUMNS",
        "program % across * (COLUMNS // 2)",
        "one decoder row",
        "wrong",
    ),
    Planted(
        "silu overflows",
        "gate / (1.0 + tl.exp(-gate))",
        "gate * tl.exp(gate) / (1.0 + tl.exp(gate))",
        "NaN, Inf and saturation",
        "wrong",
    ),
    Planted(
        "silu is not rounded before it multiplies",
        "(gate / (1.0 + tl.exp(-gate))).to(y.dtype.element_ty)",
        "gate / (1.0 + tl.exp(-gate))",
        "rows",
        "rounding",
    ),
)
