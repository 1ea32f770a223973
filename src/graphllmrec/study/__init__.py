"""Studies: models × seeds × data sets × placebos, tuned alike, in one table. See docs/study.md.

from graphllmrec.study import run_study
found = run_study("STUDY.toml", ["data/amazon-beauty"], "studies/fusion")
"""

from graphllmrec.study.plan import Study, load_study
from graphllmrec.study.runner import plan_study, run_study

__all__ = ["Study", "load_study", "plan_study", "run_study"]
