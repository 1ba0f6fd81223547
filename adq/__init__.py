"""Adaptive Dataset Quantization: the method as plain functions on arrays, tensors and shards; no Ray, no MLflow."""
