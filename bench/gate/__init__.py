"""`flashvl-bench gate`: is one git ref slower than another, and how sure is that?

cli.py           the options, and both kinds of gate
checkouts.py     the two refs as worktrees, built
turns.py         two processes that take turns; side.py: what runs in each
verdict.py       what the times say: intervals, and suspects measured again
static.py        what needs no clock: budgets of machine code; instructions.py: of CPU kernels
trials.py        how often the gate is right on this machine
"""
