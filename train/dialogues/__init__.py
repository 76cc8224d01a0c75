"""Training on dialogues: their files, what is learned of them, and how it is measured."""
