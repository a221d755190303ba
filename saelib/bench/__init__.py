"""SplitBench: many parents, many methods, one table. Knows the study and all below it, and nothing of pages.

parents by a rule -> sides -> pieces (a parent and a method) side by side, kept -> rows -> means with intervals
`docs/splitbench.md` is the protocol.
"""
