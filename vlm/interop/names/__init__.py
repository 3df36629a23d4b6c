"""Short names of models, and which model a command uses where none is named.  Imports neither torch nor the hub."""
