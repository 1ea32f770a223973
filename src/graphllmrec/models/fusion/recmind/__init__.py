"""RecMind (arXiv:2509.06286): a language model as a prior, aligned with LightGCN and gated into its layers.

model     the equations, the settings, serving
network   the trainable tensors: text projection, gates, layers
losses    ranking loss of a batch, and the alignment of graph and text vectors
tables    what is served, made from the trained network
adapters  training on with low-rank adapters in the language model (LoRA)
"""

from graphllmrec.models.fusion.recmind.model import RecMind, RecMindConfig

__all__ = ["RecMind", "RecMindConfig"]
