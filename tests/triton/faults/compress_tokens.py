from planted import Planted

FAULTS = (
    Planted(
        "padding read as tokens",
        "made & (y_at < height) & (x_at < width)",
        "made",
        "Unfold order, 7 padded to 8",
        "outside|wrong",
    ),
    Planted(
        "padding normalised too",
        "tl.where(inside, normal, 0.0)",
        "normal",
        "norm first, then padding",
        "wrong",
    ),
    Planted(
        "the norm's columns without a mask",
        "bias + mapped * bias_stride, made, 0.0",
        "bias + mapped * bias_stride",
        "85 channels, LayerNorm",
        "outside|race",
    ),
    Planted(
        "the norm over the padded parts",
        "tokens, scale, shift, made, parts * columns, eps",
        "tokens, scale, shift, made, PARTS * columns, eps",
        "blocks of 5x5, LayerNorm",
        "wrong",
    ),
    Planted(
        "row and column swapped in a block",
        "row * FACTOR + part // FACTOR, col * FACTOR + part % FACTOR",
        "row * FACTOR + part % FACTOR, col * FACTOR + part // FACTOR",
        "shuffle and LayerNorm",
        "wrong",
    ),
    Planted(
        "bins end where the next one starts",
        "((at + 1) * size + out - 1) // out - first",
        "(at + 1) * size // out - first",
        "adaptive, uneven bins, transposed",
        "wrong",
    ),
    Planted(
        "a bin is not divided by its size",
        "pooled *= share_y * share_x",
        "pooled *= share_y",
        "large values, average",
        "wrong",
    ),
    Planted(
        "bilinear reads past the last row",
        "tl.minimum(first_y + down, height - 1)",
        "first_y + down",
        "bilinear up",
        "outside|wrong",
    ),
    Planted(
        "32-bit offsets",
        "tl.program_id(0).to(tl.int64)\n    image, row, col = "
        "output_place(program, out_rows, out_cols, TRANSPOSE)\n    part",
        "tl.program_id(0)\n    image, row, col = "
        "output_place(program, out_rows, out_cols, TRANSPOSE)\n    part",
        "third image past 2^31",
        "outside|wrong",
    ),
    Planted(
        "deviations of the padding counted",
        "tl.where(inside, wide - row_sum(wide, WHOLE) / channels, 0.0)",
        "wide - row_sum(wide, WHOLE) / channels",
        "85 channels, LayerNorm",
        "wrong",
        file="norm_rows",
    ),
    Planted(
        "RMSNorm's row is not rounded before the weight",
        "(wide * rstd).to(dtype).to(tl.float32)",
        "(wide * rstd)",
        "norm first, 2x2 merge",
        "rounding",
        file="norm_rows",
    ),
)
