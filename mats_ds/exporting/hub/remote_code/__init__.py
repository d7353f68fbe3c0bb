"""Files that travel with an exported model as they are: they import torch, numpy, transformers and
each other, nothing of mats_ds."""

CODE_FILES = ("modeling_mats.py", "image_processing_mats.py", "token_selection_mats.py")
