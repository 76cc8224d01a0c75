"""Large models beside ours: at an endpoint, from a GGUF file, with transformers."""
