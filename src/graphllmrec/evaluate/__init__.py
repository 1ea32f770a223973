"""The import path of version 0.1: `graphllmrec.evaluate.metrics` is `graphllmrec.evaluation.metrics` now.

Nothing in the package imports this; it goes with version 0.3. `from graphllmrec import evaluate` gives the function.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from types import ModuleType
from typing import Any

warnings.warn("graphllmrec.evaluate is graphllmrec.evaluation now", FutureWarning, stacklevel=2)
for _name in ("compare", "evaluation", "metrics", "rank", "strata"):
    sys.modules[f"{__name__}.{_name}"] = import_module(f"graphllmrec.evaluation.{_name}")


class _CalledAsBefore(ModuleType):
    def __call__(self, *args: Any, **options: Any) -> Any:
        """Call the function: importing this package has put it in the place of the function of the same name."""
        return import_module("graphllmrec.recommender").evaluate(*args, **options)


sys.modules[__name__].__class__ = _CalledAsBefore
