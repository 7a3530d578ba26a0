"""Benchmarks of the kernels and of the model.

Each time stands beside the ceiling of the machine, and beside what one would use instead, all
measured in the same process. Installed as `flashvl_bench`; the command is `flashvl-bench`.

    timing.py    interleaved, cold-cache measurement on a clock that tests can replace
    ceilings.py  what this machine can do at most: streaming read, copy, multiply-adds
    steady.py    the environment that keeps times steady from process to process
    machine.py   facts of the machine that go into each result file
    cases.py     the op cases, which backend runs them, and whether the result is right
    ops.py       `flashvl-bench ops`; test_ops.py: the same cases in pytest-benchmark
    gpu/         the same on a GPU: device times, its ceilings and clocks, other libraries' kernels
    host.py      `flashvl-bench host`: what GPU ops cost on the host, without a GPU
    model.py     `flashvl-bench model`; parts.py: what it times; work.py: bytes and FLOPs of that;
                 rows.py: its rows; memory.py, loading.py: peak memory at work and while loading
    peer.py      transformers on our weights; remote.py, peers/: OpenVINO and llama.cpp in
                 environments of their own
    own.py       `bench_op`: the same for a function of your own
    compare.py   `flashvl-bench compare`: what changed between two runs of ops
    profile/     `flashvl-bench profile`: where the time of one answer goes
    page/        `flashvl-bench report`: result files as one HTML page
    gate/        `flashvl-bench gate`: is one git ref slower than another?
    report.py    text tables; schema.py: the result files, versioned and validated
"""
