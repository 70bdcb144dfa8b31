"""A package, so that another `tests` on the path (torch-fidelity installs one) is not taken for it."""
