"""The ops on a GPU: `flashvl-bench ops --device cuda`, and `bench_op` of tensors on one.

    timing.py    the time of a call on the device: events, graphs, a cache that has forgotten
    ceilings.py  what the GPU can do at most: read, copy, GEMM
    state.py     clocks, temperature, power and throttle reasons, from nvidia-smi
    target.py    the GPU a run is on: its facts, its timer, its ceilings
    peers.py     Liger, FlashAttention and flashinfer as further contenders

Whatever they ask of `torch.cuda` comes in as a parameter, for the tests have no GPU.
"""
