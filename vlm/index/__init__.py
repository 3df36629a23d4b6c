"""What an index is made of: vectors on disk, search among them, queries.  vlm/retrieval.py puts it together."""
