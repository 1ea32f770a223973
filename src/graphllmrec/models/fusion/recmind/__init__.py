"""RecMind (arXiv:2509.06286): a language model as a prior, aligned with LightGCN and gated into its layers.

model     the equations, training and serving
config    the settings
network   the trainable tensors: text projection, gates, layers
losses    ranking loss of a batch, and the alignment of graph and text vectors
tables    what is served, made from the trained network
adapters  training on with low-rank adapters in the language model (LoRA)
"""

from graphllmrec.models.fusion.recmind.config import RecMindConfig
from graphllmrec.models.fusion.recmind.model import RecMind

__all__ = ["RecMind", "RecMindConfig"]
