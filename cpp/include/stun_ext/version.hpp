// SPDX-License-Identifier: Apache-2.0
#pragma once

/// Version of the library; the build and the Python package read it from here.
#define STUN_EXT_VERSION "0.1.0"
