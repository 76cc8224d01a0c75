"""Model folders in Hugging Face form: one reading for training, export and evaluation."""
