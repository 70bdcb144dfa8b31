"""Are the operators right and fast on this machine? Checks, benchmark, and one file with the answer."""
