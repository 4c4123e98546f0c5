"""Trained models as ONNX graphs, one for each domain."""
