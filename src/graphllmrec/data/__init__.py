"""Reading, checking, splitting and describing interactions and items."""

from graphllmrec.data.read import demo_data, load_data
from graphllmrec.data.tables import Dataset, Histories, IdMap, Interactions, Items

__all__ = ["Dataset", "Histories", "IdMap", "Interactions", "Items", "demo_data", "load_data"]
