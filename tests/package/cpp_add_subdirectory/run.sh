#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Builds and runs the consumer in a temporary directory, or in the one given.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
if [ $# -gt 0 ]; then
  build=$1
else
  build=$(mktemp -d)
  trap 'rm -rf "$build"' EXIT
fi
cmake -S "$here" -B "$build" -DCMAKE_BUILD_TYPE=Release
cmake --build "$build" --parallel 2
ctest --test-dir "$build" --output-on-failure --no-tests=error
