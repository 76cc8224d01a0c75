"""From a backbone and its adapters to ONNX: one graph with slots, quantized, and small files."""
