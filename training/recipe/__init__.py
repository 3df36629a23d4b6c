"""Recipes: settings of a training run."""
