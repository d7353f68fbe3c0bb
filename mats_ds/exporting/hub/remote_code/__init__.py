"""Files that travel with an exported model as they are: they import torch, numpy, transformers and
each other, nothing of mats_ds."""
