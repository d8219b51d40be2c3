// SPDX-License-Identifier: Apache-2.0
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"

// Two experts that are not gated, [2, 3] and [3, 2]; relu between.
static const float kUp[2][6] = {{1, 0, 0, 0, 2, 0}, {0, 0, -1, 0, 1, 1}};
static const float kDown[2][6] = {{1, 0, 0, 1, 0, 0}, {0, 3, 0, 0, 1, 0}};
static const float kX[6] = {1, 2, 3, -1, 1, 0};
static const int64_t kIndex[4] = {0, 1, 1, 2};  // there is no expert 2
static const float kWeights[4] = {0.5f, 2, 1, 1};
// Of token 0: expert 0 has a = (1, 4), y = (1, 4, 0); expert 1 a = (0, 5), y = (15, 0, 0). Token 1: a = (0, 1).
static const float kY[6] = {0.5f + 2 * 15, 2, 0, 3, 0, 0};

static stun_ext_const_matrix up(int e) { return stun_ext_const_row_major(kUp[e], 2, 3, STUN_EXT_FLOAT32); }
static stun_ext_const_matrix down(int e) { return stun_ext_const_row_major(kDown[e], 3, 2, STUN_EXT_FLOAT32); }

static void test_pack(void) {
  const stun_ext_const_matrix weight = up(1);
  stun_ext_packed* packed = (stun_ext_packed*)(void*)&weight;
  REFUSES(stun_ext_pack(&weight, NULL, NULL), "[pack] packed must not be null");
  REFUSES(stun_ext_pack(NULL, &packed, NULL), "[pack] weight must not be null");
  CHECK(packed == NULL);
  OK(stun_ext_pack(&weight, &packed, NULL));
  stun_ext_packed_size size;
  REFUSES(stun_ext_packed_get_size(packed, NULL), "[packed_get_size] size must not be null");
  REFUSES(stun_ext_packed_get_size(NULL, &size), "[packed_get_size] packed must not be null");
  OK(stun_ext_packed_get_size(packed, &size));
  CHECK(size.rows == 2 && size.cols == 3 && size.nnz == 3 && size.masks == 4 && size.value_bytes == 128);
  CHECK(size.dtype == STUN_EXT_FLOAT32 && size.reserved == 0);
  const void* values = NULL;
  const uint32_t* masks = NULL;
  REFUSES(stun_ext_packed_buffers(NULL, &values, &masks), "[packed_buffers] packed must not be null");
  REFUSES(stun_ext_packed_buffers(packed, NULL, &masks), "[packed_buffers] values must not be null");
  REFUSES(stun_ext_packed_buffers(packed, &values, NULL), "[packed_buffers] masks must not be null");
  OK(stun_ext_packed_buffers(packed, &values, &masks));
  CHECK(masks[0] == 4 && masks[1] == 6 && masks[2] == 0);

  float dense[6] = {9, 9, 9, 9, 9, 9};
  const stun_ext_matrix out = stun_ext_row_major(dense, 2, 3, STUN_EXT_FLOAT32);
  REFUSES(stun_ext_unpack(NULL, &out, NULL), "[unpack] packed must not be null");
  REFUSES(stun_ext_unpack(packed, NULL, NULL), "[unpack] weight must not be null");
  OK(stun_ext_unpack(packed, &out, NULL));
  CHECK(memcmp(dense, kUp[1], sizeof dense) == 0);

  stun_ext_packed* again = packed;
  REFUSES(stun_ext_packed_from_buffers(2, 3, 7, values, 128, masks, 4, &again, NULL), "[from_buffers] dtype");
  REFUSES(stun_ext_packed_from_buffers(2, 3, STUN_EXT_FLOAT32, values, 64, masks, 4, &again, NULL), "[from_buffers]");
  REFUSES(stun_ext_packed_from_buffers(2, 3, STUN_EXT_FLOAT32, NULL, 128, masks, 4, &again, NULL),
          "[from_buffers] values must not be null");
  REFUSES(stun_ext_packed_from_buffers(2, 3, STUN_EXT_FLOAT32, values, 128, masks, 4, NULL, NULL),
          "[from_buffers] packed must not be null");
  CHECK(again == NULL);
  OK(stun_ext_packed_from_buffers(2, 3, STUN_EXT_FLOAT32, values, 128, masks, 4, &again, NULL));

  float y[4];
  const float expected[4] = {-3, 5, 0, 1};
  const stun_ext_const_matrix x = stun_ext_const_row_major(kX, 2, 3, STUN_EXT_FLOAT32);
  const stun_ext_matrix product = stun_ext_row_major(y, 2, 2, STUN_EXT_FLOAT32);
  REFUSES(stun_ext_packed_matmul(NULL, again, &product, NULL), "[packed_matmul] x must not be null");
  REFUSES(stun_ext_packed_matmul(&x, NULL, &product, NULL), "[packed_matmul] packed must not be null");
  REFUSES(stun_ext_packed_matmul(&x, again, NULL, NULL), "[packed_matmul] y must not be null");
  OK(stun_ext_packed_matmul(&x, again, &product, NULL));
  CHECK(memcmp(y, expected, sizeof y) == 0);
  REFUSES(stun_ext_dense_matmul(&x, NULL, &product, NULL), "[dense_matmul] weight must not be null");
  REFUSES(stun_ext_dense_matmul(&x, &x, NULL, NULL), "[dense_matmul] y must not be null");
  memset(y, 0, sizeof y);
  OK(stun_ext_dense_matmul(&x, &weight, &product, NULL));
  CHECK(memcmp(y, expected, sizeof y) == 0);
  stun_ext_packed_free(again);
  stun_ext_packed_free(packed);
  stun_ext_packed_free(NULL);
}

static void check_forward(const stun_ext_experts* experts) {
  const stun_ext_const_matrix x = stun_ext_const_row_major(kX, 2, 3, STUN_EXT_FLOAT32);
  const stun_ext_const_matrix index = stun_ext_const_row_major(kIndex, 2, 2, STUN_EXT_INT64);
  const stun_ext_const_matrix weights = stun_ext_const_row_major(kWeights, 2, 2, STUN_EXT_FLOAT32);
  float y[6] = {7, 7, 7, 7, 7, 7};
  const stun_ext_matrix out = stun_ext_row_major(y, 2, 3, STUN_EXT_FLOAT32);
  REFUSES(stun_ext_expert_forward(NULL, &index, &weights, experts, &out, NULL), "[expert_forward] x must not be null");
  REFUSES(stun_ext_expert_forward(&x, NULL, &weights, experts, &out, NULL), "top_k_index must not be null");
  REFUSES(stun_ext_expert_forward(&x, &index, NULL, experts, &out, NULL), "top_k_weights must not be null");
  REFUSES(stun_ext_expert_forward(&x, &index, &weights, NULL, &out, NULL), "experts must not be null");
  REFUSES(stun_ext_expert_forward(&x, &index, &weights, experts, NULL, NULL), "y must not be null");
  REFUSES(stun_ext_expert_forward(&x, &weights, &weights, experts, &out, NULL), "[expert_forward] top_k_index must");
  CHECK(y[0] == 7);
  OK(stun_ext_expert_forward(&x, &index, &weights, experts, &out, NULL));
  CHECK(memcmp(y, kY, sizeof y) == 0);
}

static stun_ext_expert_options options_of_test(void) {
  stun_ext_expert_options options = STUN_EXT_EXPERT_OPTIONS_INIT;
  options.activation = STUN_EXT_RELU;
  options.is_gated = 0;
  return options;
}

static void test_create(void) {
  stun_ext_packed* packed = NULL;
  const stun_ext_const_matrix first = up(0);
  OK(stun_ext_pack(&first, &packed, NULL));
  stun_ext_expert_weight of_up[2] = {{packed, {NULL, 0, 0, 0, 0, 0, 0}}, {NULL, {NULL, 0, 0, 0, 0, 0, 0}}};
  stun_ext_expert_weight of_down[2] = {{NULL, down(0)}, {NULL, down(1)}};
  of_up[1].dense = up(1);
  stun_ext_expert_options options = options_of_test();
  stun_ext_experts* experts = NULL;
  REFUSES(stun_ext_experts_create(of_up, 2, of_down, 2, &options, NULL), "[experts_create] experts must not be null");
  REFUSES(stun_ext_experts_create(of_up, 2, of_down, 2, NULL, &experts), "[experts_create] options must not be null");
  REFUSES(stun_ext_experts_create(NULL, 2, of_down, 2, &options, &experts), "[experts_create] up must not be null");
  REFUSES(stun_ext_experts_create(of_up, 2, of_down, 1, &options, &experts), "[Experts] down must have as many");
  REFUSES(stun_ext_experts_create(of_up, 0, of_down, 0, &options, &experts), "[Experts] up must have at least one");
  options.activation = 0;
  REFUSES(stun_ext_experts_create(of_up, 2, of_down, 2, &options, &experts), "options.activation must be one of");
  options = options_of_test(), options.struct_size = 1;
  REFUSES(stun_ext_experts_create(of_up, 2, of_down, 2, &options, &experts), "options.struct_size must be in");
  options = options_of_test(), options.limit = NAN;
  REFUSES(stun_ext_experts_create(of_up, 2, of_down, 2, &options, &experts), "limit must be positive, got nan");
  options = options_of_test(), options.up_bias = up(0);
  REFUSES(stun_ext_experts_create(of_up, 2, of_down, 2, &options, &experts), "up_bias must be [2, 2], got [2, 3]");
  options.up_bias.dtype = 9;
  REFUSES(stun_ext_experts_create(of_up, 2, of_down, 2, &options, &experts), "options.up_bias.dtype must be");
  CHECK(experts == NULL);
  options = options_of_test();
  OK(stun_ext_experts_create(of_up, 2, of_down, 2, &options, &experts));
  stun_ext_packed_free(packed);  // the experts share it
  int64_t num_experts = 0, hidden = 0, intermediate = 0;
  REFUSES(stun_ext_experts_shape(NULL, &num_experts, &hidden, &intermediate), "experts must not be null");
  OK(stun_ext_experts_shape(experts, NULL, NULL, NULL));
  OK(stun_ext_experts_shape(experts, &num_experts, &hidden, &intermediate));
  CHECK(num_experts == 2 && hidden == 3 && intermediate == 2);
  check_forward(experts);
  stun_ext_experts_free(experts);
  stun_ext_experts_free(NULL);
}

/// All matrices dense, as a writer may leave them.
static void write_file(const char* path) {
  char header[1024] =
      "{\"__metadata__\":{\"format\":\"stun_ext.experts\",\"format_version\":\"1\",\"experts\":\""
      "[{\\\"name\\\":\\\"m.up_proj\\\",\\\"num_experts\\\":2,\\\"shape\\\":[2,3],\\\"dtype\\\":\\\"float32\\\"},"
      "{\\\"name\\\":\\\"m.down_proj\\\",\\\"num_experts\\\":2,\\\"shape\\\":[3,2],\\\"dtype\\\":\\\"float32\\\"}]\"}";
  for (int i = 0; i < 4; ++i) {
    char tensor[160];
    snprintf(tensor, sizeof tensor,
             ",\"m.%s_proj.%d.weight\":{\"dtype\":\"F32\",\"shape\":%s,\"data_offsets\":[%d,%d]}",
             i < 2 ? "up" : "down", i % 2, i < 2 ? "[2,3]" : "[3,2]", 24 * i, 24 * i + 24);
    strcat(header, tensor);
  }
  strcat(header, "}");
  while (strlen(header) % 8 != 0) strcat(header, " ");
  const uint64_t length = strlen(header);
  FILE* file = fopen(path, "wb");
  CHECK(file != NULL);
  if (file == NULL) return;
  for (int i = 0; i < 8; ++i) fputc((int)(length >> 8 * i & 255), file);
  fwrite(header, 1, (size_t)length, file);
  fwrite(kUp, sizeof kUp, 1, file);
  fwrite(kDown, sizeof kDown, 1, file);
  CHECK(fclose(file) == 0);
}

static void test_file(void) {
  const char* path = "stun_ext_c_test.safetensors";
  write_file(path);
  stun_ext_packed_file* file = NULL;
  REFUSES(stun_ext_packed_file_open(NULL, &file), "[packed_file_open] path must not be null");
  REFUSES(stun_ext_packed_file_open(path, NULL), "[packed_file_open] file must not be null");
  REFUSES(stun_ext_packed_file_open("nowhere", &file), "[safetensors] nowhere: ");
  CHECK(file == NULL);
  OK(stun_ext_packed_file_open(path, &file));
  const stun_ext_expert_options options = options_of_test();
  stun_ext_experts* experts = NULL;
  REFUSES(stun_ext_packed_file_experts(NULL, "m", &options, &experts, NULL), "file must not be null");
  REFUSES(stun_ext_packed_file_experts(file, NULL, &options, &experts, NULL), "module must not be null");
  REFUSES(stun_ext_packed_file_experts(file, "m", NULL, &experts, NULL), "options must not be null");
  REFUSES(stun_ext_packed_file_experts(file, "m", &options, NULL, NULL), "experts must not be null");
  REFUSES(stun_ext_packed_file_experts(file, "n", &options, &experts, NULL), "has no experts of n");
  CHECK(experts == NULL);
  OK(stun_ext_packed_file_experts(file, "m", &options, &experts, NULL));
  stun_ext_packed_file_free(file);
  stun_ext_packed_file_free(NULL);
  remove(path);
  check_forward(experts);
  stun_ext_experts_free(experts);
}

void test_experts(void) {
  test_pack();
  test_create();
  test_file();
}
