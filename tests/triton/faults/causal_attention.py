from planted import Planted

FAULTS = (
    Planted(
        "a row sees the key after its own",
        "length - tokens + token + 1, 0)",
        "length - tokens + token + 2, 0)",
        "fresh prompt",
        "outside|wrong",
    ),
    Planted(
        "a row sees one key less",
        "length - tokens + token + 1, 0)",
        "length - tokens + token, 0)",
        "a later chunk",
        "wrong",
    ),
    Planted(
        "rows stand at the first keys",
        "length - tokens + token + 1, 0)",
        "token + 1, 0)",
        "a later chunk",
        "wrong",
    ),
    Planted(
        "the heads of a group one apart",
        "head = kv_head * group + row % group",
        "head = kv_head + row % group * kv_heads",
        "a later chunk",
        "wrong",
    ),
    Planted(
        "what the cache holds past a length is seen",
        "length = tl.load(lengths + batch)",
        "length = tl.load(lengths + batch) + 1",
        "a later chunk",
        "wrong",
    ),
    Planted(
        "32-bit offsets",
        "program = tl.program_id(0).to(tl.int64)",
        "program = tl.program_id(0)",
        "cache past 2^31",
        "outside|wrong",
    ),
    Planted(
        "the last block of rows twice",
        "part = blocks - 1 - program // problems",
        "part = blocks - 1 - program // problems * 0",
        "blocks of rows",
        "race|undefined|wrong",
    ),
)
