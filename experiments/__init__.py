"""The lab: what takes longer than a notebook should; `python -m experiments.study --help`, and so every module."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
