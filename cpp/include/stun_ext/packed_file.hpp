// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "stun_ext/executor.hpp"
#include "stun_ext/experts.hpp"
#include "stun_ext/safetensors.hpp"

#pragma GCC visibility push(default)
namespace stun_ext {

/// Matrices of the same kind of all experts of a layer.
struct PackedParameter {
  std::string name;              ///< "model.layers.3.mlp.experts.gate_up_proj"
  std::int64_t num_experts = 0;  ///< of this layer
  std::int64_t rows = 0;         ///< outputs, whatever the model's own layout
  std::int64_t cols = 0;
  DType dtype = DType::bf16;
};

/// `model.stun.safetensors`, which `stun-ext pack` writes: the routed experts of a pruned model, packed or, where that
/// does not pay, dense. Its layout is documented in python/stun_ext/packed_file.py. Used where it is mapped: views and
/// matrices are good as long as this or a copy of it lives.
class PackedFile {
 public:
  static constexpr const char* kName = "model.stun.safetensors";

  /// Reads the header and checks sizes and types of all matrices.
  /// @throws std::invalid_argument "[packed file] path: …" or as SafetensorsFile; the matrix is named.
  explicit PackedFile(const std::string& path) : PackedFile(SafetensorsFile(path)) {}
  explicit PackedFile(SafetensorsFile file);

  Span<const PackedParameter> parameters() const noexcept { return parameters_; }

  /// One expert's matrix. The masks of a packed one are read and counted, so that kernels can trust it.
  /// @throws std::invalid_argument naming it, if sizes do not agree with the masks, or if there is no such expert.
  ExpertWeight matrix(const PackedParameter& parameter, std::int64_t expert,
                      Executor& executor = default_executor()) const;

  /// All experts of a module, which keep the file mapped: its parameters are `module`.gate_up_proj or `module`.up_proj,
  /// and `module`.down_proj.
  /// @param function  as in Experts; is_gated is set by the parameter's name.
  /// @throws std::invalid_argument if there are none, or as matrix() and Experts.
  Experts experts(const std::string& module, ExpertFunction function = {}, ConstMatrixView up_bias = {},
                  ConstMatrixView down_bias = {}, Executor& executor = default_executor()) const;

 private:
  const PackedParameter* find(const std::string& name) const noexcept;

  SafetensorsFile file_;
  std::vector<PackedParameter> parameters_;
};

}  // namespace stun_ext
#pragma GCC visibility pop
