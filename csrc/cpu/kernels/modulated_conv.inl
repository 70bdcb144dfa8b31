#include "cpu/kernels/rows.inl"

#include "cpu/kernels/epilogue.inl"

inline void demod_act(const EpilogueForward& p) {
  GPSEG_FOR_DTYPE(p.dtype, (forward_tiles<T, true>(p)))
}

inline void demod_act_backward(const EpilogueBackward& p) {
  GPSEG_FOR_DTYPE(p.dtype, (backward_tiles<T, true>(p)))
}
