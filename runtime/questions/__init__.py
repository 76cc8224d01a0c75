"""Questions and their prompts, and the way from them to labels, votes and answers."""
