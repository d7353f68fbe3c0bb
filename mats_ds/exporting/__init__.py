"""Models for others to run: Hugging Face folders with token selection, torch.export and ONNX
programs."""
