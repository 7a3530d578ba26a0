from planted import Planted

FAULTS = (
    Planted(
        "taps past the last pixel",
        "inside & (place < size), 0)",
        "inside, 0)",
        "reduced to one tile",
        "outside",
    ),
    Planted(
        "truncated, not rounded",
        "HALF, tl.int32",
        "0, tl.int32",
        "reduced to one tile",
        "wrong|rounding",
    ),
    Planted(
        "overshoots wrap around",
        "tl.minimum(tl.maximum(total >> FRACTION, 0), 255)",
        "(total >> FRACTION) & 255",
        "black and white",
        "wrong",
    ),
    Planted(
        "tiles beside each other, not overlapping",
        "number % cols * step",
        "number % cols * tile",
        "enlarged to overlapping tiles",
        "outside|wrong",
    ),
    Planted(
        "strides of a dense image",
        "patches.numel(), grid.cols, grid.tile, grid.tile - grid.overlap, patch,\n"
        "            weight.shape[1], image.shape[last], *image.stride(), ",
        "patches.numel(), grid.cols, grid.tile, grid.tile - grid.overlap, patch,\n"
        "            weight.shape[1], image.shape[last], 3 * image.shape[1], 3, 1, ",
        "channels first in memory, mirrored",
        "outside|wrong",
    ),
    Planted(
        "the passes in the other order",
        "last = 1 if _rows_first(height, width, *size) else 0",
        "last = 0 if _rows_first(height, width, *size) else 1",
        "tall: rows first, in bands",
        "wrong|rounding",
    ),
    Planted(
        "green and blue swapped",
        "tl.where(channel == 1, green, blue)",
        "tl.where(channel == 1, blue, green)",
        "enlarged to overlapping tiles",
        "wrong",
    ),
)
