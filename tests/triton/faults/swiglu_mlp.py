from planted import Planted

FAULTS = (
    Planted(
        "ups read past the last unit",
        "up, tile, up_rows, unit < units,",
        "up, tile, up_rows, unit < units + 1,",
        "odd sizes",
        "outside",
    ),
    Planted(
        "the up rows taken for gates",
        "w + (units + unit) * w_row_stride",
        "w + unit * w_row_stride",
        "rows",
        "wrong",
    ),
    Planted(
        "ups scaled as gates",
        "up = scaled(up, up_scales,",
        "up = scaled(up, gate_scales,",
        "int8",
        "wrong",
    ),
    Planted(
        "results stored without a mask on the rows",
        "(row < rows) & (along < units))",
        "along < units)",
        "odd sizes",
        "outside",
    ),
)
