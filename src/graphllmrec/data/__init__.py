"""Reading, checking, splitting and describing interactions and items."""

from graphllmrec.data.read import demo_data, load_data
from graphllmrec.data.split import Split, check_leakage, make_split
from graphllmrec.data.stats import statistics, statistics_table
from graphllmrec.data.tables import Dataset, Histories, IdMap, Interactions, Items

__all__ = [
    "Dataset",
    "Histories",
    "IdMap",
    "Interactions",
    "Items",
    "Split",
    "check_leakage",
    "demo_data",
    "load_data",
    "make_split",
    "statistics",
    "statistics_table",
]
