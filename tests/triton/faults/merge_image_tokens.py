from planted import Planted

FAULTS = (
    Planted(
        "the rank starts at one",
        "before + tl.cumsum(sentinel.to(tl.int32), 0) - 1",
        "before + tl.cumsum(sentinel.to(tl.int32), 0)",
        "one image",
        "wrong",
    ),
    Planted(
        "a rank of -1 used as an address",
        "inside & (taken >= 0), 0.0",
        "inside, 0.0",
        "one image",
        "outside",
    ),
    Planted(
        "the further sentinel is forgotten",
        "(number == FIRST) | (number == FURTHER)",
        "number == FIRST",
        "one image",
        "wrong",
    ),
    Planted(
        "the count of earlier blocks is lost",
        "before += tl.sum(sentinel.to(tl.int32), 0)",
        "before += 0",
        "more tokens than a block ranks",
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
