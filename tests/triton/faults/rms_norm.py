from planted import Planted

FAULTS = (
    Planted(
        "columns without a mask",
        "inside = (row < rows) & (column < columns)",
        "inside = (row < rows) & (column < COLUMNS)",
        "odd width",
        "outside",
    ),
    Planted(
        "rows without a mask",
        "inside = (row < rows) & (column < columns)",
        "inside = (row < rows + ROWS) & (column < columns)",
        "odd width",
        "outside",
        one_processor=True,
    ),
    Planted(
        "32-bit offsets",
        "tl.program_id(0).to(tl.int64)",
        "tl.program_id(0)",
        "third row past 2^31",
        "outside|wrong",
    ),
    Planted(
        "every program stores the sum to the first rows",
        "tl.store(total + here",
        "tl.store(total + column + 0 * here",
        "residual",
        "race",
    ),
    Planted(
        "the mean over the padded width",
        "inverse_root(tl.sum(wide * wide, 1), columns, eps)",
        "inverse_root(tl.sum(wide * wide, 1), COLUMNS, eps)",
        "odd width",
        "wrong",
    ),
    Planted(
        "the residual's rows at the strides of x",
        "row_offsets(row, r_inner, r_outer_stride, r_inner_stride)",
        "row_offsets(row, x_inner, x_outer_stride, x_inner_stride)",
        "transposed, strided residual",
        "wrong|outside",
    ),
    Planted(
        "the weight multiplies before the row is rounded",
        "(wide * rstd[:, None]).to(y.dtype.element_ty)",
        "wide * rstd[:, None]",
        "one decoder row",
        "rounding",
    ),
    Planted(
        "the sum is not rounded before it is normalised",
        "wide = summed.to(tl.float32)",
        "wide = wide + 0.0",
        "residual",
        "rounding",
    ),
)
