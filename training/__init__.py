"""Train, evaluate and check: imported as `vlm.training`, here and when installed."""

if __name__ == "training":  # started from a checkout, `python -m training...`: the same package, never a second copy
    import sys

    import vlm.training

    sys.modules[__name__] = vlm.training
