"""The models of the page: which there are, downloads, comparisons, views inside."""
