// SPDX-License-Identifier: Apache-2.0
// What the shared library exports, recorded: the check c.symbols compares the names with it, and layout.c the types. A
// line here is added for a new function. Changing or removing one breaks every program that was linked to the library,
// and needs a new soname.

stun_ext_status stun_ext_allocate_experts(const stun_ext_const_matrix*, int64_t, int64_t, int64_t, int64_t, int64_t*,
                                          int64_t, int64_t*, double*, const stun_ext_executor*);
stun_ext_status stun_ext_apply_mask(const stun_ext_matrix*, const stun_ext_mask*, const stun_ext_executor*);
stun_ext_status stun_ext_coactivation_distances(const stun_ext_const_matrix*, const stun_ext_matrix*);
stun_ext_status stun_ext_condensed_distances(const stun_ext_const_matrix*, double*, int64_t, const stun_ext_executor*);
stun_ext_status stun_ext_cpu_features(const char**);
stun_ext_status stun_ext_cpu_model(const char**);
stun_ext_status stun_ext_cut_tree_count(const stun_ext_merge*, int64_t, int64_t, int64_t*, int64_t);
stun_ext_status stun_ext_cut_tree_height(const stun_ext_merge*, int64_t, double, int64_t*, int64_t);
stun_ext_status stun_ext_dense_matmul(const stun_ext_const_matrix*, const stun_ext_const_matrix*,
                                      const stun_ext_matrix*, const stun_ext_executor*);
const char* stun_ext_dtype_name(stun_ext_dtype);
int64_t stun_ext_dtype_size(stun_ext_dtype);
stun_ext_status stun_ext_expert_forward(const stun_ext_const_matrix*, const stun_ext_const_matrix*,
                                        const stun_ext_const_matrix*, const stun_ext_experts*, const stun_ext_matrix*,
                                        const stun_ext_executor*);
stun_ext_status stun_ext_experts_create(const stun_ext_expert_weight*, int64_t, const stun_ext_expert_weight*, int64_t,
                                        const stun_ext_expert_options*, stun_ext_experts**);
void stun_ext_experts_free(stun_ext_experts*);
stun_ext_status stun_ext_experts_shape(const stun_ext_experts*, int64_t*, int64_t*, int64_t*);
stun_ext_status stun_ext_get_isa(stun_ext_isa*);
const char* stun_ext_isa_name(stun_ext_isa);
stun_ext_status stun_ext_isa_supported(stun_ext_isa, int32_t*);
const char* stun_ext_last_error_message(void);
stun_ext_status stun_ext_linkage(const double*, int64_t, stun_ext_linkage_method, stun_ext_merge*, int64_t,
                                 const stun_ext_executor*);
stun_ext_status stun_ext_linkage_rows(const stun_ext_const_matrix*, stun_ext_linkage_method,
                                      const stun_ext_linkage_options*, stun_ext_merge*, int64_t, int64_t*,
                                      const stun_ext_executor*);
stun_ext_status stun_ext_mixed_distances(const stun_ext_const_matrix*, const stun_ext_const_matrix*, double, int32_t,
                                         const stun_ext_matrix*, const stun_ext_executor*);
stun_ext_status stun_ext_nm_mask(const stun_ext_const_matrix*, int64_t, int64_t, const stun_ext_mask*,
                                 const stun_ext_executor*);
stun_ext_status stun_ext_nm_prune(const stun_ext_matrix*, const float*, int64_t, int64_t, int64_t, int64_t*,
                                  const stun_ext_executor*);
int32_t stun_ext_num_threads(void);
stun_ext_status stun_ext_pack(const stun_ext_const_matrix*, stun_ext_packed**, const stun_ext_executor*);
stun_ext_status stun_ext_packed_buffers(const stun_ext_packed*, const void**, const uint32_t**);
stun_ext_status stun_ext_packed_file_experts(const stun_ext_packed_file*, const char*, const stun_ext_expert_options*,
                                             stun_ext_experts**, const stun_ext_executor*);
void stun_ext_packed_file_free(stun_ext_packed_file*);
stun_ext_status stun_ext_packed_file_open(const char*, stun_ext_packed_file**);
void stun_ext_packed_free(stun_ext_packed*);
stun_ext_status stun_ext_packed_from_buffers(int64_t, int64_t, stun_ext_dtype, const void*, int64_t, const uint32_t*,
                                             int64_t, stun_ext_packed**, const stun_ext_executor*);
stun_ext_status stun_ext_packed_get_size(const stun_ext_packed*, stun_ext_packed_size*);
stun_ext_status stun_ext_packed_matmul(const stun_ext_const_matrix*, const stun_ext_packed*, const stun_ext_matrix*,
                                       const stun_ext_executor*);
stun_ext_status stun_ext_pairwise_distances(const stun_ext_const_matrix*, int32_t, const stun_ext_matrix*,
                                            const stun_ext_executor*);
stun_ext_status stun_ext_pruned_per_row(int64_t, double, int64_t*);
stun_ext_status stun_ext_set_isa(stun_ext_isa);
stun_ext_status stun_ext_set_num_threads(int32_t);
stun_ext_status stun_ext_star_clusters(const stun_ext_const_matrix*, double, int64_t, int64_t*, int64_t, int64_t*);
stun_ext_status stun_ext_star_clusters_count(const stun_ext_const_matrix*, int64_t, int64_t*, int64_t, double*);
stun_ext_status stun_ext_star_clusters_rows(const stun_ext_const_matrix*, double, int64_t,
                                            const stun_ext_linkage_options*, int64_t*, int64_t, int64_t*,
                                            const stun_ext_executor*);
const char* stun_ext_status_name(stun_ext_status);
stun_ext_status stun_ext_unpack(const stun_ext_packed*, const stun_ext_matrix*, const stun_ext_executor*);
const char* stun_ext_version(void);
stun_ext_status stun_ext_wanda_mask(const stun_ext_const_matrix*, const float*, int64_t, const int64_t*, int64_t,
                                    const stun_ext_mask*, const stun_ext_executor*);
stun_ext_status stun_ext_wanda_prune(const stun_ext_matrix*, const float*, int64_t, const int64_t*, int64_t, int64_t*,
                                     const stun_ext_executor*);
stun_ext_status stun_ext_wanda_scores(const stun_ext_const_matrix*, const float*, int64_t, const stun_ext_matrix*,
                                      const stun_ext_executor*);
