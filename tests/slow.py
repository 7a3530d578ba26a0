"""Whether tests that take minutes run too: FLASHVL_SLOW_TESTS=1."""

import os

SLOW = os.environ.get("FLASHVL_SLOW_TESTS", "0") not in ("", "0")
