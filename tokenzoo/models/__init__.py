"""Loading a vision-language model and asking it."""
