"""What a run keeps, where, and how much memory it takes."""
