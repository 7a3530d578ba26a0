from planted import Planted

FAULTS = (
    Planted(
        "columns without a mask",
        "(position < positions) & (column < columns)",
        "position < positions",
        "odd overlap, crop",
        "outside|race",
    ),
    Planted(
        "height and width swapped",
        "position // width % height, position % width",
        "position // height % width, position % height",
        "two by three, crop",
        "wrong|outside",
    ),
    Planted(
        "32-bit offsets",
        "tl.program_id(0).to(tl.int64)",
        "tl.program_id(0)",
        "third tile past 2^31",
        "outside|wrong",
    ),
    Planted(
        "token stride of a dense tensor",
        "tile_stride, token_stride, stride,\n        RULE",
        "tile_stride, columns, stride,\n        RULE",
        "tokens with a gap, crop",
        "wrong",
    ),
    Planted(
        "no source multiplied instead of masked",
        "inside & (share > 0)",
        "inside",
        "NaN and Inf",
        "wrong",
        file="canvas",
    ),
    Planted(
        "odd overlaps cut one patch early",
        "(overlap + 1) // 2",
        "overlap // 2",
        "odd overlap, crop",
        "wrong",
        file="canvas",
    ),
    Planted(
        "the last tile's overlap reaches past it",
        "tl.minimum(full // step, tiles - 1)",
        "full // step",
        "linear",
        "wrong|outside",
        file="canvas",
    ),
    Planted(
        "border ring left in",
        "full = position + border",
        "full = position",
        "one tile, border dropped",
        "wrong",
        file="canvas",
    ),
)
