from planted import Planted

FAULTS = (
    Planted(
        "the rank of text rows is read unmasked",
        "inside & from_image, 0.0",
        "inside, 0.0",
        "one image",
        "outside",
    ),
    Planted(
        "ids past the last row",
        "at < end, 0)",
        "at >= 0, 0)",
        "rows with a gap",
        "outside|race|wrong",
    ),
    Planted(
        "only the first id of an image counts",
        "(found == FIRST_OF_IMAGE) | (found == REST_OF_IMAGE)",
        "found == FIRST_OF_IMAGE",
        "one image",
        "wrong",
    ),
    Planted(
        "a negative id of any kind is an image row",
        "(found == FIRST_OF_IMAGE) | (found == REST_OF_IMAGE)",
        "found < 1000",
        "one image",
        "wrong|outside",
    ),
    Planted(
        "sentinels of earlier programs forgotten",
        "tl.sum(seen, 0) + ",
        "",
        "one image",
        "wrong",
    ),
    Planted(
        "32-bit offsets",
        "tl.program_id(0).to(tl.int64)",
        "tl.program_id(0)",
        "third row past 2^31",
        "outside|wrong",
    ),
)
