// SPDX-License-Identifier: Apache-2.0
#include "arguments.hpp"

namespace stun_ext::c {
namespace {

void check_reserved(const char* operation, const char* name, std::int32_t reserved) {
  if (reserved != 0) refuse(operation, name, ".reserved must be 0, got ", reserved);
}

DType dtype_of(const char* operation, const char* name, stun_ext_dtype number) {
  const std::optional<DType> dtype = find_dtype(number);
  if (!dtype) refuse(operation, name, ".dtype must be one of the STUN_EXT_ element types, got ", number);
  return *dtype;
}

}  // namespace

std::optional<DType> find_dtype(stun_ext_dtype dtype) noexcept {
  switch (dtype) {
    case STUN_EXT_FLOAT32:
      return DType::f32;
    case STUN_EXT_FLOAT16:
      return DType::f16;
    case STUN_EXT_BFLOAT16:
      return DType::bf16;
    case STUN_EXT_FLOAT64:
      return DType::f64;
    case STUN_EXT_INT64:
      return DType::i64;
    default:
      return std::nullopt;
  }
}

std::optional<Isa> find_isa(stun_ext_isa isa) noexcept {
  switch (isa) {
    case STUN_EXT_SCALAR:
      return Isa::scalar;
    case STUN_EXT_AVX2:
      return Isa::avx2;
    case STUN_EXT_AVX512:
      return Isa::avx512;
    case STUN_EXT_NEON:
      return Isa::neon;
    default:
      return std::nullopt;
  }
}

stun_ext_isa number_of(Isa isa) noexcept {
  switch (isa) {
    case Isa::scalar:
      return STUN_EXT_SCALAR;
    case Isa::avx2:
      return STUN_EXT_AVX2;
    case Isa::avx512:
      return STUN_EXT_AVX512;
    case Isa::neon:
      return STUN_EXT_NEON;
  }
  return 0;
}

Linkage linkage(const char* operation, stun_ext_linkage_method method) {
  switch (method) {
    case STUN_EXT_SINGLE:
      return Linkage::single;
    case STUN_EXT_COMPLETE:
      return Linkage::complete;
    case STUN_EXT_AVERAGE:
      return Linkage::average;
    case STUN_EXT_WARD:
      return Linkage::ward;
    case STUN_EXT_CENTROID:
      return Linkage::centroid;
    default:
      refuse(operation, "method must be one of the STUN_EXT_ linkage methods, got ", method);
  }
}

ConstMatrixView view(const char* operation, const char* name, const stun_ext_const_matrix* matrix) {
  const stun_ext_const_matrix& m = at(operation, name, matrix);
  check_reserved(operation, name, m.reserved);
  return {m.data, m.rows, m.cols, m.row_stride, m.col_stride, dtype_of(operation, name, m.dtype)};
}

MatrixView view(const char* operation, const char* name, const stun_ext_matrix* matrix) {
  const stun_ext_matrix& m = at(operation, name, matrix);
  check_reserved(operation, name, m.reserved);
  return {m.data, m.rows, m.cols, m.row_stride, m.col_stride, dtype_of(operation, name, m.dtype)};
}

MaskView view(const char* operation, const char* name, const stun_ext_mask* mask) {
  const stun_ext_mask& m = at(operation, name, mask);
  return {m.data, m.rows, m.cols, m.row_stride};
}

}  // namespace stun_ext::c
