"""ONNX export and ONNX Runtime back ends."""
