"""Everything that is looked at: pages, figures, tables, the index; and notebooks run through papermill.

Holds the order of the study's notebooks and their keys, the processes that run them, the templates and the coloured views.
Computes no result itself; imports from all rooms. Offers `reproduce.reproduce`, `split_command.run_split`,
`children_page.children_page`, `feature_page.feature_page`, and `tools`, the functions for use by hand.
"""
