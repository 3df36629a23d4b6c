"""The images that can be searched: the bundled samples or a folder of the visitor."""
