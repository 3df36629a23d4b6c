"""What people see first: classification and retrieval in the browser, on the bundled model.  `python -m demo`."""

if __name__ == "demo":  # started from a checkout, `python -m demo...`: the same package, never a second copy
    import sys

    import vlm.demo

    sys.modules[__name__] = vlm.demo
