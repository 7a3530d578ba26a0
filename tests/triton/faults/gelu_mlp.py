from planted import Planted

FAULTS = (
    Planted(
        "the residual forgotten",
        "linear.project(wide, second, b2, residual=x)",
        "linear.project(wide, second, b2)",
        "rows",
        "wrong",
    ),
    Planted(
        "tanh where erf is asked for",
        'if approximate == "none" else "gelu_tanh"',
        'if approximate == "erf" else "gelu_tanh"',
        "exact gelu",
        "wrong",
        "fp32",
    ),
    Planted(
        "the rows not normalised",
        "activation, norm=norm)",
        "activation)",
        "odd sizes",
        "wrong",
    ),
    Planted(
        "bytes of int4 counted as columns",
        "inside & (byte * 2 < columns)",
        "inside & (byte < columns)",
        "odd sizes, int4",
        "outside",
        file="product",
    ),
)
