"""One module for each checkpoint layout: a table of names, and the config in our terms."""
