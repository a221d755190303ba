"""SplitBench: many parents, many methods, one table. Knows nothing of pages; imports from all rooms before it.

Holds the rule for parents, made-up worlds whose true children are known, the pieces and what runs them on cores or a cluster,
and the means. Offers `suite.read_suite`, `parents.choose_parents`, `run.run_bench`, `aggregate.leaderboard`.

    parents by a rule -> sides -> pieces (a parent and a method) side by side, kept -> rows -> means with intervals

`docs/splitbench.md` is the protocol.
"""
