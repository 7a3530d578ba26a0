"""Training of the tiny checkpoint: synthetic data, held-out questions, tokenizer, loop."""
