"""Dual encoders without a native layout: OpenCLIP or transformers computes them, `Embedder` stays the same."""
