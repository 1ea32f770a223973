"""Cost of branch curves and detector, as shares of the processor time of RecMind's fit.

python benchmarks/grokking_cost.py --data DIR
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

from graphllmrec import Recommender
from graphllmrec.grokking.detector import GrokkingDetector
from graphllmrec.train.monitor import BranchMonitor


def main() -> None:
    """Fit RecMind once and time both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=10)
    args = parser.parse_args()
    spent: Counter[str] = Counter()
    _time_method(BranchMonitor, "look", spent)
    _time_method(GrokkingDetector, "update", spent)
    recommender = Recommender.from_recipe("recmind", model={"epochs": args.epochs, "patience": args.epochs})
    started = time.process_time()
    recommender.fit(args.data)
    total = time.process_time() - started
    found = {"data": args.data.name, "fit, processor s": round(total, 2), "epochs": args.epochs}
    found |= {f"{name}, share": round(seconds / total, 6) for name, seconds in spent.items()}
    print(json.dumps(found))


def _time_method(owner: type, name: str, spent: Counter[str]) -> None:
    plain = getattr(owner, name)

    def timed(*args: Any, **named: Any) -> Any:
        began = time.process_time()
        try:
            return plain(*args, **named)
        finally:
            spent[f"{owner.__name__}.{name}"] += time.process_time() - began

    setattr(owner, name, timed)


if __name__ == "__main__":
    main()
