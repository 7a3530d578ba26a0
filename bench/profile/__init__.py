"""`flashvl-bench profile`: where the time of one generated answer goes.

cli.py      the options
answer.py   what is asked, measured, printed and written
record.py   sees the calls of ops and the stages around them
rows.py     adds them up
flame.py    draws them; trace.py writes them for Perfetto
ncu.py      the same columns from Nsight Compute, on a GPU
"""
