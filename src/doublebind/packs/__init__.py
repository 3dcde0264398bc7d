"""Opens, checks and generates content: traits, items, prompts, transcripts."""
