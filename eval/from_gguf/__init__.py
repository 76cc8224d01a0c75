"""A GGUF file as a backbone: its weights, numbers and tokenizer back in Hugging Face form."""
