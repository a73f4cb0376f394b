"""From sentences to numbers: tokens, alignment of two prompts, and what an edit fuses."""
