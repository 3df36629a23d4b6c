"""The demo: classification and retrieval in the browser.  `python -m demo` serves it on the bundled model."""

if __name__ == "demo":  # `python -m demo` in a checkout: use the installed package, not a second copy
    import sys

    import vlm.demo

    sys.modules[__name__] = vlm.demo
