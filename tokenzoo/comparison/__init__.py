"""What a comparison is made of: the request, the cells that are measured, the rows they become."""
