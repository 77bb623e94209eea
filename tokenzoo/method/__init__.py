"""What the author of a method sees: the interface, the events, what a reduction is. Nothing here imports torch."""
