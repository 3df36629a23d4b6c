"""What people see first: classification and retrieval in the browser, on the bundled model.  `python -m demo`."""
