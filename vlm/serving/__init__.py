"""`vlm serve`: a model and an index for other programs, over HTTP."""
