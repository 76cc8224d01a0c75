"""The GGUF half: tokenizer, tensors, quantized types, importance matrices."""
