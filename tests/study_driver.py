"""`saelib` on a study of two runs without a model, for tests of what surrounds the work: python study_driver.py reproduce ..."""

from __future__ import annotations

import signal
import sys

from saelib import cli
from saelib.report import reproduce, study_plan
from saelib.study import runs

signal.signal(signal.SIGINT, signal.default_int_handler)  # a job started in the background inherits "ignore"
runs.RUNS = study_plan.RUNS = runs.RUNS[:2]
reproduce.PREPARE, reproduce.TABLES = "fake_study:prepare", "fake_study:tables"
sys.exit(cli.main(sys.argv[1:]))
