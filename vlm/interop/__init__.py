"""Models of other libraries: found, downloaded, read into our format, and written for those libraries."""
