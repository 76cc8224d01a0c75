"""The GPU side: questions in, one PEFT LoRA adapter per category out."""
