"""Thousands of hostile and damaged inputs over all commands: `python -m tests.fuzz --seed 0 --minutes 10`.

Each input is made from its seed and number alone, is run in a forked child, and has to end as a user may expect:
done or refused in one line, in time, in memory, with nothing else touched. `signals` kills and interrupts instead.
"""
