"""Reads samples from disk and makes batches."""
