"""What is exported: a backbone's folder and PEFT folders, chosen, opened and checked."""
