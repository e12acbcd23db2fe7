"""The lab: what takes longer than a notebook should; `python -m experiments.study --help`, and so every module."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Threads that wait for each other soon sleep, so that other programs can run. OpenMP reads this when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "10000")
