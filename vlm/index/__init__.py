"""Image search: embeddings on disk, exact and approximate search, queries.  `embedding_index` is the entry."""
