"""One module per tab: `tab(actions)` builds it, `endpoints(actions)` offers the same to programs."""
