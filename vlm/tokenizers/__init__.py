"""Texts -> ids (B, T)."""
