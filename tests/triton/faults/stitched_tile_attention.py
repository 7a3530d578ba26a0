from planted import Planted

FAULTS = (
    Planted(
        "the middle of an odd overlap goes to the lower tile",
        "before, after = (grid.overlap + 1) // 2, grid.overlap // 2",
        "before, after = grid.overlap // 2, (grid.overlap + 1) // 2",
        "across kernel blocks, crop",
        "wrong",
    ),
    Planted(
        "the border stays",
        "start = tl.where(first == 0, border, before)",
        "start = tl.where(first == 0, 0, before)",
        "one tile, border dropped",
        "outside|race|wrong",
    ),
    Planted(
        "the shares of the two tiles are exchanged",
        "which == 1, lower, 1.0 - lower",
        "which == 1, 1.0 - lower, lower",
        "linear",
        "wrong",
    ),
    Planted(
        "only the upper tile of a blend",
        "range(0, over * across if BLEND else 1)",
        "range(0, over if BLEND else 1)",
        "mean",
        "wrong",
    ),
    Planted(
        "the lower tile at the place of the upper one",
        "(top_row - below * step + place_row)",
        "(top_row + place_row)",
        "mean",
        "outside|wrong",
    ),
    Planted(
        "32-bit offsets",
        "program = tl.program_id(0).to(tl.int64)",
        "program = tl.program_id(0)",
        "tiles past 2^31",
        "outside|wrong",
    ),
)
