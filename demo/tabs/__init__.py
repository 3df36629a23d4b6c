"""One module per tab: `tab(actions)` lays it out, `endpoints(actions)` offers the same to programs."""
