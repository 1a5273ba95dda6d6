"""`make fuzz`: generated and damaged inputs for everything that reads what a user gives.

    PYTHONPATH=tests python -m fuzz --count 1200 --seed 7
    PYTHONPATH=tests python -m fuzz --again fuzz-failures/refer-0012

Structures come from hypothesis, bytes from real files that are changed at random. Each input is
written into a folder of its own and tried in a child process that is ended when it takes too long.
It must end in quarantine with a reason, in a clear line, or in the right result, which every kind
of input knows in a way of its own. What fails is kept, with how to repeat it.
"""
