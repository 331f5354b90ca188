// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace gcs::tools {

// An applet gets the words after its name and returns its exit code. Errors go to standard error as "name:
// text".
using Arguments = std::span<const std::string>;

int Ls(Arguments arguments);
int MkfsExt4(Arguments arguments);
int Pause(Arguments arguments);
int Test(Arguments arguments);

// Prints "applet: text" on standard error.
void Complain(std::string_view applet, std::string_view text);

}  // namespace gcs::tools
