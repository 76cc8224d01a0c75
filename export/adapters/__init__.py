"""PEFT folders: which of them, what is in them, and what they change."""
