// upfirdn2d on the GPU: which kernel serves a problem, and its launch.
#include <cstdint>
#include <iterator>
#include <utility>

#include "cuda/kernels/upfirdn2d_launch.cuh"

namespace gpseg::cuda {
namespace {

struct Instance {
  Fir fir;
  bool finishes;                  // compiled with the epilogue too
  const char* name_of_access[3];  // null where there is no such instance
};

// Every filter that has kernels of its own; the generic kernel serves all others. Four taps given
// once for both axes are multiplied out, which costs less than a second pass.
constexpr Instance kInstances[] = {
    // Blur: StyleGAN2's filter after a transposed convolution, and before a strided one.
    {{1, 1, 4, false}, true, {"blur4_columns", "blur4_channels", "blur4_elements"}},
    // Upsampling: the skip images, and layers that filter what they upsample.
    {{2, 1, 4, false}, true, {"up4_columns", "up4_channels", "up4_elements"}},
    // Downsampling: the discriminator's skips, and the gradient of upsampling.
    {{1, 2, 4, false}, false, {"down4_columns", "down4_channels", "down4_elements"}},
    // Adaptive augmentation's wavelet on RGB images: pixels of 3 channels fill no vector.
    {{2, 1, 12, true}, false, {"up12_columns", nullptr, "up12_elements"}},
    {{1, 2, 12, true}, false, {"down12_columns", nullptr, "down12_elements"}},
};
constexpr int kInstanceCount = static_cast<int>(std::size(kInstances));

struct Choice {
  int instance;  // kInstanceCount for the generic kernel
  Access access;
};

bool serves(const Fir& fir, const Upfirdn2d& p) {
  const bool taps =
      p.filter_w == fir.taps && (p.filter_h == 0 || (p.filter_h == fir.taps && !fir.separable));
  const auto factors = [&](const Axis& axis) { return axis.up == fir.up && axis.down == fir.down; };
  return p.filter != nullptr && taps && factors(p.x) && factors(p.y);
}

// Whether all that a kernel moves is in whole, aligned vectors.
bool in_vectors(const Upfirdn2d& p) {
  const int length = kVectorBytes / (p.dtype == DType::float64   ? 8
                                     : p.dtype == DType::float32 ? 4
                                                                 : 2);
  const bool sizes =
      p.channels_last ? p.c % length == 0 : p.x.in % length == 0 && p.x.out % length == 0;
  const Epilogue none = {}, &e = p.epilogue == nullptr ? none : *p.epilogue;
  const bool epilogue = p.channels_last ? are_aligned({e.scale, e.bias}) : are_aligned({e.noise});
  return sizes && epilogue && are_aligned({p.input, p.output, p.filtered});
}

Choice choose(const Upfirdn2d& p) {
  const Access vectors = p.channels_last ? Access::channels : Access::columns;
  const Access access = in_vectors(p) ? vectors : Access::elements;
  for (int i = 0; i < kInstanceCount; ++i) {
    const Instance& instance = kInstances[i];
    if (serves(instance.fir, p) && (p.epilogue == nullptr || instance.finishes)) {
      const bool exists = instance.name_of_access[static_cast<int>(access)] != nullptr;
      return {i, exists ? access : Access::elements};
    }
  }
  return {kInstanceCount, Access::elements};
}

template <class T, int index, Access access>
void plan_instance(const Upfirdn2d& p, Upfirdn2dPlan& to) {
  constexpr const Instance& instance = kInstances[index];
  if constexpr (instance.name_of_access[static_cast<int>(access)] != nullptr) {
    const TilePlan plan = plan_tiles<FirShape<T, instance.fir, access>>(problem_of<T>(p));
    to = {plan.blocks, plan.threads, plan.shared_bytes};
  }
}

template <class T, int index>
void plan_access(Access access, const Upfirdn2d& p, Upfirdn2dPlan& to) {
  switch (access) {
    case Access::columns:
      return plan_instance<T, index, Access::columns>(p, to);
    case Access::channels:
      return plan_instance<T, index, Access::channels>(p, to);
    case Access::elements:
      return plan_instance<T, index, Access::elements>(p, to);
  }
}

template <class T, int... index>
void plan(const Choice& choice, const Upfirdn2d& p, Upfirdn2dPlan& to,
          std::integer_sequence<int, index...>) {
  ((choice.instance == index ? plan_access<T, index>(choice.access, p, to) : void()), ...);
}

template <class T, int index, Access access>
void launch_instance(const Upfirdn2d& p, const Queue& queue) {
  constexpr const Instance& instance = kInstances[index];
  if constexpr (instance.name_of_access[static_cast<int>(access)] != nullptr) {
    using Shape = FirShape<T, instance.fir, access>;
    if constexpr (instance.finishes) {
      if (p.epilogue != nullptr) {
        return family_of(p.epilogue->activation.act) == Family::straight
                   ? launch_tiled<Shape, Finish::straight>(p, queue)
                   : launch_tiled<Shape, Finish::curved>(p, queue);
      }
    }
    launch_tiled<Shape, Finish::plain>(p, queue);
  }
}

template <class T, int index>
void launch_access(Access access, const Upfirdn2d& p, const Queue& queue) {
  switch (access) {
    case Access::columns:
      return launch_instance<T, index, Access::columns>(p, queue);
    case Access::channels:
      return launch_instance<T, index, Access::channels>(p, queue);
    case Access::elements:
      return launch_instance<T, index, Access::elements>(p, queue);
  }
}

constexpr int kGenericThreads = 256;

int64_t generic_blocks(const Upfirdn2d& p) {
  const int64_t count = p.n * p.c * p.y.out * p.x.out;
  return std::min(ceil_div(count, kGenericThreads), kMostBlocks);
}

template <Finish finish, class T>
void launch_generic(const Upfirdn2d& p, const Queue& queue) {
  const AnyFir fir = {
      p.y.up, p.x.up, p.y.down, p.x.down, p.filter_h == 0 ? p.filter_w : p.filter_h, p.filter_w};
  const dim3 grid(static_cast<unsigned>(generic_blocks(p)));
  upfirdn2d_generic_kernel<finish, T>
      <<<grid, kGenericThreads, 0, stream_of(queue)>>>(problem_of<T>(p), fir, epilogue_of<T>(p));
  check_launch("upfirdn2d_generic_kernel", shape_of(p), grid, kGenericThreads, 0);
}

template <class T, int... index>
void launch(const Choice& choice, const Upfirdn2d& p, const Queue& queue,
            std::integer_sequence<int, index...>) {
  if (choice.instance < kInstanceCount) {
    ((choice.instance == index ? launch_access<T, index>(choice.access, p, queue) : void()), ...);
  } else if (p.epilogue == nullptr) {
    launch_generic<Finish::plain, T>(p, queue);
  } else if (family_of(p.epilogue->activation.act) == Family::straight) {
    launch_generic<Finish::straight, T>(p, queue);
  } else {
    launch_generic<Finish::curved, T>(p, queue);
  }
}

}  // namespace

const char* upfirdn2d_instance(const Upfirdn2d& p) {
  const Choice choice = choose(p);
  return choice.instance == kInstanceCount
             ? "generic"
             : kInstances[choice.instance].name_of_access[static_cast<int>(choice.access)];
}

Upfirdn2dPlan upfirdn2d_plan(const Upfirdn2d& p) {
  Upfirdn2dPlan result = {generic_blocks(p), kGenericThreads, 0};
  for_dtype(p.dtype, [&](auto zero) {
    plan<decltype(zero)>(choose(p), p, result, std::make_integer_sequence<int, kInstanceCount>());
  });
  return result;
}

void upfirdn2d(const Upfirdn2d& p, const Queue& queue) {
  if (p.n * p.c * p.y.out * p.x.out == 0) {
    return;
  }
  for_dtype(p.dtype, [&](auto zero) {
    launch<decltype(zero)>(choose(p), p, queue, std::make_integer_sequence<int, kInstanceCount>());
  });
}

}  // namespace gpseg::cuda
