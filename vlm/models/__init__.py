"""The networks: `layers`, `vision`, `text`, `clip`."""
