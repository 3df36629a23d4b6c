"""What an index is made of: vectors on disk, search among them, queries.  `embedding_index` puts it together."""
