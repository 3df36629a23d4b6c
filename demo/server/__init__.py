"""How the page is served: which requests are accepted, where uploads lie."""
