"""Finding methods: built-ins, installed distributions, single files, and the registry that describes them."""
