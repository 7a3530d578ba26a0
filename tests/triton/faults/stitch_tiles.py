from planted import Planted

FAULTS = (
    Planted(
        "the middle of an odd overlap goes to the later tile",
        "(overlap + 1) // 2",
        "overlap // 2",
        "odd overlap, crop",
        "wrong",
    ),
    Planted(
        "a source that does not exist is read",
        "inside & exists, 0.0",
        "inside, 0.0",
        "NaN and Inf",
        "wrong",
    ),
    Planted(
        "the tent is a step early",
        "(2 * local + 1)",
        "(2 * local)",
        "linear",
        "wrong",
    ),
    Planted(
        "the border is not dropped",
        "place % canvas_width + border",
        "place % canvas_width",
        "odd overlap and border",
        "wrong",
    ),
    Planted(
        "32-bit offsets",
        "token.to(tl.int64) * token_stride",
        "token * token_stride",
        "third token past 2^31",
        "outside",
    ),
)
