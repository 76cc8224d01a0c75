"""The protocol of an engine, and the two that compute: llama.cpp and onnxruntime."""
