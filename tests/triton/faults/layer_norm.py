from planted import Planted

FAULTS = (
    Planted(
        "padding counted into the variance",
        "deviation = tl.where(column < columns, deviation - slip[:, None], 0.0)",
        "deviation = tl.where(column < COLUMNS, deviation - mean[:, None], 0.0)",
        "odd width",
        "wrong",
    ),
    Planted(
        "the mean of one sum",
        "deviation - slip[:, None]",
        "deviation",
        "mean far above the spread",
        "wrong",
        dtype="fp32",
    ),
    Planted(
        "32-bit offsets",
        "tl.program_id(0).to(tl.int64)",
        "tl.program_id(0)",
        "third row past 2^31",
        "outside|wrong",
    ),
    Planted(
        "the bias without its mask",
        "tl.load(bias + column * bias_stride, column < columns, 0.0)",
        "tl.load(bias + column * bias_stride)",
        "odd width",
        "outside",
    ),
)
