"""The commands of vlm/cli.py, one module for each family."""
