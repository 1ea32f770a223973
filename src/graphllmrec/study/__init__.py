"""Studies: models × seeds × data sets × placebos, tuned alike, in one table. See docs/guides/study.md.

from graphllmrec.study import run_study
found = run_study("STUDY.toml", ["data/amazon-beauty"], "studies/fusion")
"""

from graphllmrec.study.config import Study
from graphllmrec.study.loading import load_study
from graphllmrec.study.plan import plan_study
from graphllmrec.study.runner import run_study

__all__ = ["Study", "load_study", "plan_study", "run_study"]
