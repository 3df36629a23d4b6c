"""Readers of single formats; training/data/sources.py recognises which one a data set has."""
