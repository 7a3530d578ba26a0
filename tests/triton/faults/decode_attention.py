from planted import Planted

SEVERAL = "keys and heads in several blocks"
FAULTS = (
    Planted(
        "shares are joined without their largest scores",
        "total * tl.exp2(top - level)",
        "total",
        SEVERAL,
        "wrong",
    ),
    Planted(
        "shares are joined without their sums",
        "total * tl.exp2(top - level)",
        "tl.exp2(top - level)",
        SEVERAL,
        "wrong",
    ),
    Planted(
        "shares overlap by a key",
        "last = tl.minimum((share + 1) * each, length)",
        "last = tl.minimum((share + 1) * each + 1, length)",
        SEVERAL,
        "wrong",
    ),
    Planted(
        "an empty share divides by its sum",
        "weight = tl.where(total == 0.0, 0.0, total",
        "weight = tl.where(total < 0.0, 0.0, 1.0 / total * total",
        SEVERAL,
        "wrong",
    ),
    Planted(
        "rows past the group are written",
        "inside = row < group",
        "inside = row < group + 1",
        "unequal lengths",
        "outside|race|wrong",
    ),
    Planted(
        "what the cache holds past a length is seen",
        "length = tl.load(lengths + batch)",
        "length = tl.load(lengths + batch) + 1",
        "unequal lengths",
        "wrong",
    ),
    Planted(
        "32-bit offsets",
        "program = tl.program_id(0).to(tl.int64)",
        "program = tl.program_id(0)",
        "cache past 2^31",
        "outside|wrong",
    ),
)
