// SPDX-License-Identifier: Apache-2.0
#pragma once

// Names in GCS_TEST_WEAK, separated by commas: what the doubles of this folder leave out. They are linked
// into programs of the tests only, by --wrap (engine.cmake); nothing that is shipped contains them, which
// gcs_oci_escape_test.py checks.
namespace gcs::test {

// Allocates nothing, as children of the zygote ask too.
bool Weak(const char* name) noexcept;

}  // namespace gcs::test
