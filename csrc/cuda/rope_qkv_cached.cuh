// The kernel of rope_qkv.cuh, writing keys and values into the cache at the rows' slots. A row
// whose slot is -1 is padding: its keys and values are neither read nor written.
#pragma once

#include "rope_qkv.cuh"
