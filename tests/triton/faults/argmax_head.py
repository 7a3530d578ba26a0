from planted import Planted

FAULTS = (
    Planted(
        "words past the last compared",
        "tl.where(along < words, key_of(logits, along), lowest)",
        "key_of(logits, along)",
        "ties, int8, every word",
        "wrong",
    ),
    Planted(
        "ties to the highest index",
        "return (order.to(tl.int64) << 32) | (0xFFFFFFFF - word)",
        "return (order.to(tl.int64) << 32) | word",
        "ties",
        "wrong",
    ),
    Planted(
        "NaN not above all",
        "tl.where(logit != logit, 0x7FC00000, bits",
        "tl.where(logit != logit, 0, bits",
        "NaN and Inf",
        "wrong",
    ),
    Planted(
        "logits compared before they are rounded",
        "logits = logits.to(x.dtype.element_ty).to(tl.float32)",
        "logits = logits + 0.0",
        "ties by rounding",
        "wrong",
    ),
    Planted(
        "a block keeps one word too few",
        "each = min(k, shape.units)",
        "each = max(min(k, shape.units) - 1, 1)",
        "ties, the best 20",
        "wrong",
    ),
    Planted(
        "keys of another row",
        "kept + row * count + place, place < count",
        "kept + row * count + place, place < count + 1",
        "ties of 1120 words, the best 70",
        "outside|wrong",
    ),
    Planted(
        "the next best not below the last",
        "tl.where(key < last, key, lowest)",
        "tl.where(key <= last, key, lowest)",
        "the best 5",
        "wrong",
    ),
)
