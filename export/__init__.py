"""From a Hugging Face checkpoint and PEFT adapters to a bundle of quantized GGUF files."""
