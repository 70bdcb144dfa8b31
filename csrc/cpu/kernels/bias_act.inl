#include "cpu/kernels/rows.inl"

#include "cpu/kernels/epilogue.inl"

inline void bias_act(const EpilogueForward& p) { GPSEG_FOR_DTYPE(p.dtype, forward_tiles<T>(p)) }

inline void bias_act_backward(const EpilogueBackward& p) {
  GPSEG_FOR_DTYPE(p.dtype, (GPSEG_READ_AS(backward_tiles, p)))
}

inline void bias_act_double_backward(const EpilogueDoubleBackward& p) {
  GPSEG_FOR_DTYPE(p.dtype, (GPSEG_READ_AS(double_backward_tiles, p)))
}
