"""Triton's kernels run on the CPU in every test, as the backend ttsem."""

from tests.emulated_triton import emulator

emulator.install()
