"""One computation at a time on the device, whichever visitor asks."""

from threading import RLock

compute_lock = RLock()
