from planted import Planted

FAULTS = (
    Planted(
        "a slot of -1 is used as an address",
        "inside & (slot >= 0) & (slot < sequences * capacity)",
        "inside",
        "every row skipped",
        "outside|race|wrong",
        file="rope_qkv",
    ),
    Planted(
        "keys of a sequence where the next one's belong",
        "slot // reserved, slot % reserved",
        "slot // reserved, slot % reserved + 1",
        "slots in any order",
        "outside|race|wrong",
        file="rope_qkv",
    ),
    Planted(
        "values through the strides of a dense cache",
        "place * v_stride",
        "place * 2 * half_vectors",
        "views of a cache",
        "outside|race|wrong",
        file="rope_qkv",
    ),
    Planted(
        "the upper half of a key beside the lower one",
        "k_at + half * k_channel_stride",
        "k_at + half",
        "channels with a gap",
        "race|outside|wrong",
        file="rope_qkv",
    ),
)
