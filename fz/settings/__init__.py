"""What a run is asked to do, and where that is read from. Nothing here imports torch."""
