"""What the compiled CUDA kernels take of a GPU and what they move, held to a committed table of budgets."""
