"""`saelib` on a study of two runs without a model, for tests of what surrounds the work: python study_driver.py reproduce ..."""

from __future__ import annotations

import sys

from saelib import cli, reproduce, runs

runs.RUNS = runs.RUNS[:2]
reproduce.PREPARE = "fake_study:prepare"
sys.exit(cli.main(sys.argv[1:]))
