"""Model folders: saving and loading."""
