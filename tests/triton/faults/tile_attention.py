from planted import Planted

FAULTS = (
    Planted(
        "keys past the tile are not masked out of the scores",
        "tl.full([ROWS], length, tl.int32)",
        "tl.full([ROWS], length + KEYS, tl.int32)",
        "SigLIP2 heads",
        "wrong",
    ),
    Planted(
        "a row past the tile is written",
        "inside = row < length",
        "inside = row < length + ROWS",
        "packed tiles",
        "outside|race",
    ),
    Planted(
        "packed tiles start at the first row",
        "k += start * k_token * UNIT",
        "k += 0 * start * k_token * UNIT",
        "packed tiles",
        "wrong",
    ),
    Planted(
        "the last rows of a tile have no block",
        "(counts + ROWS - 1) // ROWS",
        "counts // ROWS",
        "packed, across kernel blocks",
        "wrong",
    ),
    Planted(
        "values at the strides of the keys",
        "v + head * v_head * UNIT, v_token",
        "v + head * v_head * UNIT, 2 * v_token",
        "of one fused projection",
        "wrong|outside",
    ),
    Planted(
        "32-bit offsets",
        "program = tl.program_id(0).to(tl.int64)",
        "program = tl.program_id(0)",
        "tiles past 2^31",
        "outside|wrong",
    ),
)
