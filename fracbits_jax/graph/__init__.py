"""What a network computes, as a graph of a few operations: what exports and memory are found from."""
