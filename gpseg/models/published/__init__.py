"""Checkpoints that others published, read without running what is in them.

`networks.read_published` is what the rest of the package calls. Such a file is a pickle, and a pickle is a program:
`unpickling` carries out the harmless part of one and refuses the rest, `torch_file` does so for what torch.save wrote,
`snapshot` and `renamed` know the two families of files and bring both to the names of `gpseg.models.stylegan2`.
"""
