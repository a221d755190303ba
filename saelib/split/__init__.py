"""One feature taken apart: the parent and its tokens, children, contexts, the judge, controls and calibration on known truth."""
