"""Torch layers: tensors in, tensors out."""
