// SPDX-License-Identifier: Apache-2.0
#ifndef STUN_EXT_STUN_EXT_H_
#define STUN_EXT_STUN_EXT_H_

/// The C ABI of stun_ext: C11, also C++. What each operation computes is defined here in short; the C++ header named
/// with a group has the longer text. An example, clusters of 128 experts, 40 of them:
///
///     #include <stdint.h>
///     #include <stdio.h>
///     #include <stun_ext/stun_ext.h>
///
///     int keep_forty_experts(const uint16_t* router_bf16, int64_t labels[128]) {
///       const stun_ext_const_matrix router =
///           stun_ext_const_row_major(router_bf16, 128, 4096, STUN_EXT_BFLOAT16);
///       stun_ext_linkage_options options = STUN_EXT_LINKAGE_OPTIONS_INIT;
///       options.n_clusters = 40;
///       stun_ext_merge merges[127];
///       int64_t count;
///       stun_ext_status status =
///           stun_ext_linkage_rows(&router, STUN_EXT_WARD, &options, merges, 127, &count, NULL);
///       if (status == STUN_EXT_OK) status = stun_ext_cut_tree_count(merges, count, 40, labels, 128);
///       if (status != STUN_EXT_OK) fprintf(stderr, "%s\n", stun_ext_last_error_message());
///       return status == STUN_EXT_OK ? 0 : -1;
///     }
///
/// - Errors: every function returns a stun_ext_status, except getters that cannot fail. Arguments are checked before
///   any work: a null view, output or options, a size that does not fit, a number that names no dtype, method or
///   instruction set are STUN_EXT_INVALID_ARGUMENT, with a message "[operation] what is legal, got value". The
///   outputs are then as they were. After any other error they hold nothing of use.
/// - Arguments: inputs, options, outputs, and the executor last. All sizes are int64_t, and count elements. A pointer
///   to an array is followed by its size, which must be exactly what the function says, unless it says otherwise; at
///   size 0 the pointer may be null. Inputs and outputs must not overlap.
/// - Ownership: nothing is handed over. The caller owns every buffer, the library keeps no pointer after it returns,
///   and there is nothing to free. Strings belong to the library and stay while it is loaded, but for the error
///   message.
/// - Threads: every function may be called from many threads at once, on different outputs. Distances, merges,
///   labels, scores and masks are bit-for-bit the same for every executor, number of threads and instruction set.
/// - Stability: functions, constants and layouts stay as they are while the shared library keeps its soname. A struct
///   with a struct_size can grow at its end: initialise it by its _INIT.

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define STUN_EXT_API __attribute__((visibility("default")))
#else
#define STUN_EXT_API
#endif

#ifdef __cplusplus
#define STUN_EXT_NOEXCEPT noexcept
extern "C" {
#else
#define STUN_EXT_NOEXCEPT
#endif

/// How a call ended.
typedef int32_t stun_ext_status;
enum {
  STUN_EXT_OK = 0,
  STUN_EXT_INVALID_ARGUMENT = 1,
  STUN_EXT_UNAVAILABLE = 2,  ///< this build or processor cannot do it
  STUN_EXT_CANCELLED = 3,    ///< by the progress callback
  STUN_EXT_OUT_OF_MEMORY = 4,
  STUN_EXT_CALLBACK_FAILED = 5,  ///< the caller's executor or progress failed or broke its contract
  STUN_EXT_INTERNAL = 6          ///< anything else: please report it
};

/// Element types. Zero names none, so that a forgotten field is an error; the same holds for the other enumerations.
typedef int32_t stun_ext_dtype;
enum { STUN_EXT_FLOAT32 = 1, STUN_EXT_FLOAT16 = 2, STUN_EXT_BFLOAT16 = 3, STUN_EXT_FLOAT64 = 4, STUN_EXT_INT64 = 5 };

/// Instruction sets that the library has kernels for.
typedef int32_t stun_ext_isa;
enum {
  STUN_EXT_SCALAR = 1,  ///< portable code
  STUN_EXT_AVX2 = 2,    ///< AVX2, FMA and F16C
  STUN_EXT_AVX512 = 3,  ///< AVX-512 F, BW, DQ and VL
  STUN_EXT_NEON = 4     ///< AArch64
};

/// Agglomerative linkage rules, as SciPy names them.
typedef int32_t stun_ext_linkage_method;
enum { STUN_EXT_SINGLE = 1, STUN_EXT_COMPLETE = 2, STUN_EXT_AVERAGE = 3, STUN_EXT_WARD = 4, STUN_EXT_CENTROID = 5 };

/// A read-only matrix of any strides, counted in elements: (r, c) lies at data + (r·row_stride + c·col_stride).
typedef struct stun_ext_const_matrix {
  const void* data;
  int64_t rows;
  int64_t cols;
  int64_t row_stride;
  int64_t col_stride;
  stun_ext_dtype dtype;
  int32_t reserved;  ///< 0
} stun_ext_const_matrix;

/// The same, writable; distinct elements must not share memory.
typedef struct stun_ext_matrix {
  void* data;
  int64_t rows;
  int64_t cols;
  int64_t row_stride;
  int64_t col_stride;
  stun_ext_dtype dtype;
  int32_t reserved;  ///< 0
} stun_ext_matrix;

/// A mask of bytes, row-major with a row stride: 1 = kept, 0 = pruned.
typedef struct stun_ext_mask {
  uint8_t* data;
  int64_t rows;
  int64_t cols;
  int64_t row_stride;
} stun_ext_mask;

/// One merge of a dendrogram: a row of SciPy's linkage matrix Z.
typedef struct stun_ext_merge {
  double first;   ///< lower id of the two clusters (0…n−1 observations, n+i the cluster made by merge i)
  double second;  ///< higher id
  double height;  ///< distance at which they merged
  double size;    ///< observations in the new cluster
} stun_ext_merge;

/// A part of an operation's work, made by the library for the caller's executor to run: items [begin, end).
/// Whatever it does not return STUN_EXT_OK for is remembered, and decides what the operation returns.
typedef stun_ext_status (*stun_ext_task)(void* task_context, int64_t begin, int64_t end);

/// Where parallel work runs: the threads of an engine that owns them. Passing null instead means the library's own:
/// stun_ext_num_threads() threads, started for each call and joined before it returns, safe after fork().
/// Several operations may use one executor at once if its parallel_for may be called so.
typedef struct stun_ext_executor {
  int64_t struct_size;  ///< sizeof(stun_ext_executor)
  int64_t concurrency;  ///< how many ranges can run at once, in [1, INT32_MAX]
  void* context;        ///< passed to parallel_for
  /// Calls task(task_context, begin, end) on disjoint ranges, none empty and each at most `grain` long, that cover
  /// [0, count), in any order and from any threads, and returns when none is running any more. If a call does not
  /// return STUN_EXT_OK it may leave out the rest. Returns STUN_EXT_OK, or anything else to make the operation end
  /// with STUN_EXT_CALLBACK_FAILED. Like every callback it must return: no exception, no longjmp.
  stun_ext_status (*parallel_for)(void* context, int64_t count, int64_t grain, stun_ext_task task, void* task_context);
} stun_ext_executor;
#define STUN_EXT_EXECUTOR_INIT {sizeof(stun_ext_executor), 1, NULL, NULL}

/// How much memory a clustering of rows may take, and where it ends.
typedef struct stun_ext_linkage_options {
  int64_t struct_size;   ///< sizeof(stun_ext_linkage_options)
  int64_t memory_limit;  ///< bytes beside the rows and the result; 0: as much as is fastest
  int64_t n_clusters;    ///< end when so many clusters are left, in [1, n]
  double height;         ///< end before the first merge above it; not NaN
  /// Null, or called a few times a second from the thread that called the operation, with an estimate in [0, 1] of what
  /// is done. Returns STUN_EXT_OK to go on or STUN_EXT_CANCELLED to stop; anything else is a failure.
  stun_ext_status (*progress)(void* progress_context, double fraction);
  void* progress_context;
} stun_ext_linkage_options;
#define STUN_EXT_ANY_HEIGHT 1.7976931348623157e308 /* the largest double: no merge is above it */
#define STUN_EXT_LINKAGE_OPTIONS_INIT {sizeof(stun_ext_linkage_options), 0, 1, STUN_EXT_ANY_HEIGHT, NULL, NULL}

/// A contiguous [rows, cols] matrix.
static inline stun_ext_const_matrix stun_ext_const_row_major(const void* data, int64_t rows, int64_t cols,
                                                             stun_ext_dtype dtype) {
  stun_ext_const_matrix matrix = {data, rows, cols, cols, 1, dtype, 0};
  return matrix;
}
static inline stun_ext_matrix stun_ext_row_major(void* data, int64_t rows, int64_t cols, stun_ext_dtype dtype) {
  stun_ext_matrix matrix = {data, rows, cols, cols, 1, dtype, 0};
  return matrix;
}

// --- The library and the processor (version.hpp, error.hpp, cpu.hpp, executor.hpp)

/// "major.minor.patch" of the library that is loaded.
STUN_EXT_API const char* stun_ext_version(void) STUN_EXT_NOEXCEPT;

/// What went wrong in the last call on this thread that did not return STUN_EXT_OK; "" if there was none. At most 1,023
/// characters. Valid until the next call on this thread: copy it to keep it.
STUN_EXT_API const char* stun_ext_last_error_message(void) STUN_EXT_NOEXCEPT;

/// "STUN_EXT_OK" etc., "bfloat16" etc., "avx2" etc.; "unknown" for other numbers.
STUN_EXT_API const char* stun_ext_status_name(stun_ext_status status) STUN_EXT_NOEXCEPT;
STUN_EXT_API const char* stun_ext_dtype_name(stun_ext_dtype dtype) STUN_EXT_NOEXCEPT;
STUN_EXT_API const char* stun_ext_isa_name(stun_ext_isa isa) STUN_EXT_NOEXCEPT;

/// Bytes of one element; 0 for other numbers.
STUN_EXT_API int64_t stun_ext_dtype_size(stun_ext_dtype dtype) STUN_EXT_NOEXCEPT;

/// The processor's own name ("" where it has none), and those of its extensions that the library asks about, with
/// blanks between them. These and the next three return STUN_EXT_UNAVAILABLE if the environment's STUN_EXT_ISA names
/// something that this processor or build lacks, as does every operation that chooses between kernels.
STUN_EXT_API stun_ext_status stun_ext_cpu_model(const char** model) STUN_EXT_NOEXCEPT;
STUN_EXT_API stun_ext_status stun_ext_cpu_features(const char** features) STUN_EXT_NOEXCEPT;

/// Whether this processor and build can run an instruction set: 1 or 0.
STUN_EXT_API stun_ext_status stun_ext_isa_supported(stun_ext_isa isa, int32_t* supported) STUN_EXT_NOEXCEPT;

/// The instruction set in use: the last stun_ext_set_isa, else STUN_EXT_ISA, else the fastest supported one.
STUN_EXT_API stun_ext_status stun_ext_get_isa(stun_ext_isa* isa) STUN_EXT_NOEXCEPT;

/// Changes it for the process, for tests and benchmarks; STUN_EXT_UNAVAILABLE if it is not supported.
STUN_EXT_API stun_ext_status stun_ext_set_isa(stun_ext_isa isa) STUN_EXT_NOEXCEPT;

/// Threads of the library's own executor, for the whole process; at first STUN_EXT_NUM_THREADS of the environment, else
/// the processors that this process may run on.
STUN_EXT_API int32_t stun_ext_num_threads(void) STUN_EXT_NOEXCEPT;
STUN_EXT_API stun_ext_status stun_ext_set_num_threads(int32_t count) STUN_EXT_NOEXCEPT;

// --- Distances (distance.hpp). `rows`: [n, d] float32, float16, bfloat16 or float64, finite, n and d at least 1.

/// Euclidean distances between rows, computed in float64; if `divide_by_frobenius` is not 0, divided by ‖rows‖_F.
/// `out`: [n, n] float32 or float64, symmetric, zero diagonal.
STUN_EXT_API stun_ext_status stun_ext_pairwise_distances(const stun_ext_const_matrix* rows, int32_t divide_by_frobenius,
                                                         const stun_ext_matrix* out,
                                                         const stun_ext_executor* executor) STUN_EXT_NOEXCEPT;

/// The same, condensed: n(n−1)/2 values for the pairs (0,1), (0,2), …, (n−2,n−1).
STUN_EXT_API stun_ext_status stun_ext_condensed_distances(const stun_ext_const_matrix* rows, double* out,
                                                          int64_t out_size,
                                                          const stun_ext_executor* executor) STUN_EXT_NOEXCEPT;

/// Co-activation distances −A/|mean(A)|. `counts`: A [E, E] float32, float64 or int64, symmetric, zero diagonal,
/// finite, mean not zero. `out`: [E, E] float32 or float64.
STUN_EXT_API stun_ext_status stun_ext_coactivation_distances(const stun_ext_const_matrix* counts,
                                                             const stun_ext_matrix* out) STUN_EXT_NOEXCEPT;

/// pairwise_distances(rows) − mix · counts/|mean(counts)|, added in float64; `mix` finite.
STUN_EXT_API stun_ext_status stun_ext_mixed_distances(const stun_ext_const_matrix* rows,
                                                      const stun_ext_const_matrix* counts, double mix,
                                                      int32_t divide_by_frobenius, const stun_ext_matrix* out,
                                                      const stun_ext_executor* executor) STUN_EXT_NOEXCEPT;

// --- Clusters (cluster.hpp). `labels`: for each of the n observations the lowest one in its cluster.

/// Agglomerative clustering of condensed distances: the closest pair first, ties by (lower id, higher id).
/// `condensed`: n(n−1)/2 finite distances, which Ward and centroid take to be Euclidean (at most 1e150). `merges`: n−1,
/// heights non-decreasing but for centroid.
STUN_EXT_API stun_ext_status stun_ext_linkage(const double* condensed, int64_t condensed_size,
                                              stun_ext_linkage_method method, stun_ext_merge* merges,
                                              int64_t merges_size, const stun_ext_executor* executor) STUN_EXT_NOEXCEPT;

/// The same from rows, by all methods and in as little memory as the options say. Centroid heights can decrease.
/// With a memory_limit below n×n doubles the merges are the same and the heights within 1e-9 (relative; the last bits
/// of Ward's and centroid's then vary with the limit and the executor's concurrency). `merges`: room for n−1 or more;
/// `count`: how many were written, fewer than n−1 if the options end it early.
STUN_EXT_API stun_ext_status stun_ext_linkage_rows(const stun_ext_const_matrix* rows, stun_ext_linkage_method method,
                                                   const stun_ext_linkage_options* options, stun_ext_merge* merges,
                                                   int64_t merges_size, int64_t* count,
                                                   const stun_ext_executor* executor) STUN_EXT_NOEXCEPT;

/// Flat clusters of n = labels_size observations after their first n − n_clusters merges; `merges` may be all, or the
/// first ones.
STUN_EXT_API stun_ext_status stun_ext_cut_tree_count(const stun_ext_merge* merges, int64_t merges_size,
                                                     int64_t n_clusters, int64_t* labels,
                                                     int64_t labels_size) STUN_EXT_NOEXCEPT;

/// Flat clusters of the merges that are, with all merges below them, at most `height` (not NaN).
STUN_EXT_API stun_ext_status stun_ext_cut_tree_height(const stun_ext_merge* merges, int64_t merges_size, double height,
                                                      int64_t* labels, int64_t labels_size) STUN_EXT_NOEXCEPT;

/// The rule of the released STUN code: pairs by (distance, i, j) below `threshold` (not NaN) merge two clusters where
/// each end is that near to the whole other cluster, until `min_clusters` in [1, E] are left.
/// `distances`: [E, E] float32 or float64, E at most 65,536; the upper triangle decides; +Inf means never.
STUN_EXT_API stun_ext_status stun_ext_star_clusters(const stun_ext_const_matrix* distances, double threshold,
                                                    int64_t min_clusters, int64_t* labels, int64_t labels_size,
                                                    int64_t* n_clusters) STUN_EXT_NOEXCEPT;

/// The star rule at exactly `n_clusters`; `threshold`: the one used, a pair distance or ±Inf.
STUN_EXT_API stun_ext_status stun_ext_star_clusters_count(const stun_ext_const_matrix* distances, int64_t n_clusters,
                                                          int64_t* labels, int64_t labels_size,
                                                          double* threshold) STUN_EXT_NOEXCEPT;

/// The star rule on Euclidean distances between rows, holding the pairs below `threshold` alone, about 25 bytes each.
/// Of the options it takes memory_limit and progress.
STUN_EXT_API stun_ext_status stun_ext_star_clusters_rows(const stun_ext_const_matrix* rows, double threshold,
                                                         int64_t min_clusters, const stun_ext_linkage_options* options,
                                                         int64_t* labels, int64_t labels_size, int64_t* n_clusters,
                                                         const stun_ext_executor* executor) STUN_EXT_NOEXCEPT;

/// One star-rule threshold for all layers whose kept experts sum to `total`, or to the nearest total that can be
/// reached (allocation.hpp). `distances`: a matrix for each layer. `min_experts`: of a layer. `n_group`: routing groups
/// of equal, contiguous experts, 1 for none; min_experts is a multiple of it. `counts`: experts kept, for each layer;
/// `reached_total`: their sum.
STUN_EXT_API stun_ext_status stun_ext_allocate_experts(const stun_ext_const_matrix* distances, int64_t distances_size,
                                                       int64_t total, int64_t min_experts, int64_t n_group,
                                                       int64_t* counts, int64_t counts_size, int64_t* reached_total,
                                                       double* threshold,
                                                       const stun_ext_executor* executor) STUN_EXT_NOEXCEPT;

// --- Scores and masks (saliency.hpp, mask.hpp). `weight`: [R, C] float32, float16 or bfloat16, finite.
// `input_sq_norm`: C values, finite and not negative; size 0 means magnitude, S = |W|.

/// Wanda scores S = |W|·sqrt(input_sq_norm). `out`: [R, C] float32.
STUN_EXT_API stun_ext_status stun_ext_wanda_scores(const stun_ext_const_matrix* weight, const float* input_sq_norm,
                                                   int64_t input_sq_norm_size, const stun_ext_matrix* out,
                                                   const stun_ext_executor* executor) STUN_EXT_NOEXCEPT;

/// Weights to prune in a row of `cols` weights: int(cols · sparsity); sparsity in [0, 1).
STUN_EXT_API stun_ext_status stun_ext_pruned_per_row(int64_t cols, double sparsity, int64_t* count) STUN_EXT_NOEXCEPT;

/// In row r the prune_counts[r] lowest scores go, ties from the lowest column up. `prune_counts`: R values in [0, C].
/// Where `weight` holds NaN or Inf, what the mask holds after the error is unspecified.
STUN_EXT_API stun_ext_status stun_ext_wanda_mask(const stun_ext_const_matrix* weight, const float* input_sq_norm,
                                                 int64_t input_sq_norm_size, const int64_t* prune_counts,
                                                 int64_t prune_counts_size, const stun_ext_mask* mask,
                                                 const stun_ext_executor* executor) STUN_EXT_NOEXCEPT;

/// The same decision written as +0 into the weights; `zeros`: how many of them are zero afterwards.
STUN_EXT_API stun_ext_status stun_ext_wanda_prune(const stun_ext_matrix* weight, const float* input_sq_norm,
                                                  int64_t input_sq_norm_size, const int64_t* prune_counts,
                                                  int64_t prune_counts_size, int64_t* zeros,
                                                  const stun_ext_executor* executor) STUN_EXT_NOEXCEPT;

/// Of every m consecutive columns the n highest scores stay, 1 <= n < m; ties prune the lowest column first.
/// `scores`: [R, C] float32, float16 or bfloat16, without NaN (else what the mask holds after the error is
/// unspecified), C a multiple of m.
STUN_EXT_API stun_ext_status stun_ext_nm_mask(const stun_ext_const_matrix* scores, int64_t n, int64_t m,
                                              const stun_ext_mask* mask,
                                              const stun_ext_executor* executor) STUN_EXT_NOEXCEPT;

/// The same by Wanda scores, written as +0 into the weights; `zeros`: how many of them are zero afterwards.
STUN_EXT_API stun_ext_status stun_ext_nm_prune(const stun_ext_matrix* weight, const float* input_sq_norm,
                                               int64_t input_sq_norm_size, int64_t n, int64_t m, int64_t* zeros,
                                               const stun_ext_executor* executor) STUN_EXT_NOEXCEPT;

/// Writes +0 where the mask is 0; the other weights keep their bits. The mask is only read.
STUN_EXT_API stun_ext_status stun_ext_apply_mask(const stun_ext_matrix* weight, const stun_ext_mask* mask,
                                                 const stun_ext_executor* executor) STUN_EXT_NOEXCEPT;

#ifdef __cplusplus
}  // extern "C"
#endif

#endif  // STUN_EXT_STUN_EXT_H_
