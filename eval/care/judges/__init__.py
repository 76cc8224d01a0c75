"""Judges of answers in sentences: who they are, what they are asked, what they said."""
