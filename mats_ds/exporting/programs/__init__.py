"""Models as one file of fixed shapes that other programs run: torch.export and ONNX."""
