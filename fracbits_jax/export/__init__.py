"""What leaves the project: networks with integer bit-widths in formats that other programs run."""
