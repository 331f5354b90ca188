#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""scripts/lint.py must find what it promises to find, and nothing in a tree that is in order."""

import pathlib
import shutil
import subprocess
import sys
import tempfile

import check

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
sys.dont_write_bytecode = True
sys.path.insert(0, str(ROOT / "scripts"))
import lint as lint_module  # noqa: E402
SPDX = "// SPDX-License-Identifier: Apache-2.0\n"
GOOD = {
    "CMakeLists.txt": "# SPDX-License-Identifier: Apache-2.0\nset(GCS_LAYERS base net engine)\n",
    "agent/api/README.md": "# api\n",
    "agent/api/gcs/v1/a.proto": SPDX + """
message Good {
  // What it is.
  string name = 1;
  enum Kind {
    KIND_NONE = 0;
  }
  // Default KIND_NONE.
  Kind kind = 2;
  oneof which {
    // One.
    map<string, string> one = 3;
  }
}
message Empty {}
service GoodService {
  rpc Get(Good) returns (Empty);
}
""",
    "agent/base/README.md": "# base\n",
    "agent/base/paths.cc": SPDX + '#include "base/paths.h"\n\nint F() { return open("/x", 0); }\n',
    "agent/engine/README.md": "# engine\n",
    "agent/engine/a.cc": SPDX + '#include "engine/a.h"\n\n#include "base/paths.h"\n#include "net/link.h"\n',
    "initrd/README.md": "# initrd\n",
    "kernel-config/README.md": "# kernel\n",
    "scripts/README.md": "# scripts\n",
    "tests/README.md": "# tests\n",
}
SECTIONS = ["text", "protos", "readmes", "layers", "calls", "python", "shell", "format"]


def lint(files):
    with tempfile.TemporaryDirectory() as folder:
        for name, content in {**GOOD, **files}.items():
            path = pathlib.Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        for name in ("scripts/lint.py", ".clang-format"):
            shutil.copy(ROOT / name, pathlib.Path(folder, name))
        subprocess.run(["git", "init", "-q", folder], check=True)
        result = subprocess.run(["python3", "scripts/lint.py", *SECTIONS], cwd=folder, capture_output=True, text=True)
        return result.returncode, result.stdout


def finds(where, section, files):
    code, output = lint(files)
    found = [line for line in output.splitlines() if line.startswith(where + ": ") and line.endswith(f"[{section}]")]
    assert found and code == 1, f"nothing at {where} [{section}]: {output}"
    others = [line for line in output.splitlines() if line.endswith("]") and not line.startswith(where.split(":")[0] + ":")]
    assert not others, f"more than expected: {others}"


def a_tree_in_order_passes():
    code, output = lint({})
    assert code == 0 and output.splitlines()[-1] == f"{len(SECTIONS)} passed, 0 failed, 0 skipped", output


def a_field_of_the_contract_without_a_comment_is_found():
    for field in ("string bare = 1;", "repeated Other bare = 2;", "map<string, string> bare = 3;", "oneof x {\n    bytes bare = 4;\n  }",
                  "// For another.\n  string other = 6;\n  string bare = 7;", "message Inner {\n    bool bare = 1;\n  }"):
        text = SPDX + "message M {\n  " + field + "\n}\n"
        line = next(number for number, each in enumerate(text.splitlines(), 1) if " bare = " in each)
        finds(f"agent/api/gcs/v1/b.proto:{line}", "protos", {"agent/api/gcs/v1/b.proto": text})


def a_layer_that_includes_one_above_is_found():
    finds("agent/net/link.h:2", "layers", {"agent/net/README.md": "# net\n", "agent/net/link.h": SPDX + '#include "engine/a.h"\n'})


def init_may_use_base_only():
    finds("agent/init/main.cc:3", "layers",
          {"agent/init/README.md": "# init\n", "agent/init/main.cc": SPDX + '#include "base/paths.h"\n#include "net/link.h"\n'})


def agent_code_that_includes_a_test_header_is_found():
    finds("agent/engine/b.cc:2", "layers", {"agent/engine/b.cc": SPDX + '#include "host/vm/vm.h"\n'})


def a_folder_that_is_no_layer_is_found():
    finds("agent/extra/a.cc:1", "layers", {"agent/extra/README.md": "# extra\n", "agent/extra/a.cc": SPDX})


def a_call_that_takes_a_path_is_found():
    for call in ('int f = open("/x", 0);', 'int f = ::mount(a, b, c, 0, nullptr);', "std::ifstream f(path);", "int f() { return opendir(p); }",
                 "int f = renameat2(1, a, 2, b, 0);", "auto f = std::filesystem::exists(p);"):
        finds("agent/engine/b.cc:3", "calls", {"agent/engine/b.cc": SPDX + "\n" + call + "\n"})


def calls_of_other_things_and_mentions_are_not():
    code, output = lint({"agent/engine/b.cc": SPDX + """
// open(path) is not called here, nor is mount(2).
const char* text = "open(x)";
int A() { return file.open(1) + f->mount(2) + reopen(3) + Paths::open(4); }
int big = 1'000'000;
bool open() const;
int B() { return open("/proc/self/ns/pid", 0) + mount(job); }
"""})
    assert code == 0, output


def a_missing_licence_line_is_found():
    finds("agent/engine/b.cc:1", "text", {"agent/engine/b.cc": "int a;\n"})


def a_file_that_is_too_long_is_found():
    finds("agent/engine/b.cc:601", "text", {"agent/engine/b.cc": SPDX + "int a;\n" * 600})


def unfinished_work_and_files_from_elsewhere_are_found():
    finds("agent/engine/b.cc:2", "text", {"agent/engine/b.cc": SPDX + "// TO" + "DO: more\n"})
    finds("agent/engine/b.cc:2", "text", {"agent/engine/b.cc": SPDX + "// see shar" + "ed/facts/x.md\n"})


def a_silently_skipped_test_is_found():
    finds("tests/unit/a_test.cc:2", "text", {"tests/unit/README.md": "# unit\n", "tests/unit/a_test.cc":
                                             SPDX + 'TEST_CASE("x" * doctest::sk' + "ip(true)) {}\n"})


def a_folder_without_a_readme_is_found():
    finds("agent/net/README.md:1", "readmes", {"agent/net/link.h": SPDX})


def code_in_another_format_is_found():
    finds("agent/engine/b.cc:2", "format", {"agent/engine/b.cc": SPDX + "int   a ;\n"})


def a_careless_shell_script_is_found():
    finds("scripts/x:4", "shell", {"scripts/x": "#!/bin/bash\n# SPDX-License-Identifier: Apache-2.0\na='b c'\nrm $a\n"})


def python_that_does_not_compile_is_found():
    finds("scripts/x.py:2", "python", {"scripts/x.py": "# SPDX-License-Identifier: Apache-2.0\ndef f(:\n"})


class Unit:
    def __init__(self, name, *headers):
        self.name = name
        self.headers = set(headers)


def chosen(jobs, changed, share=0):
    return [[job.name for job in part] for part in lint_module.choose(jobs, set(changed), share)]


def clang_tidy_looks_first_at_all_units_that_changed_themselves():
    changed = [Unit(f"changed{i}.cc") for i in range(200)]
    including = [Unit(f"including{i}.cc", "a.h") for i in range(200)]
    others = [Unit(f"other{i}.cc", "b.h") for i in range(200)]
    names = [job.name for job in changed] + ["a.h"]
    days = [chosen(others + including + changed, names, share) for share in range(lint_module.TIDY_SHARES)]
    for part, units in ((1, including), (2, others)):
        assert sorted(name for day in days for name in day[part]) == sorted(unit.name for unit in units), "a week is not all"
    for own, _, _ in days:
        assert own == names[:-1], own


def clang_tidy_looks_at_all_units_that_include_a_change_while_they_are_few():
    units = [Unit("a.cc", "a.h"), Unit("b.cc", "a.h", "b.h"), Unit("c.cc", "c.h")]
    for share in range(lint_module.TIDY_SHARES):
        own, including, _ = chosen(units, ["b.cc", "a.h"], share)
        assert own == ["b.cc"] and including == ["a.cc"], (own, including)
        assert chosen(units, [".clang-tidy"], share) == [[], [], ["a.cc", "b.cc", "c.cc"]]


if __name__ == "__main__":
    check.run([case for name, case in list(globals().items()) if callable(case) and name[0].islower()
               and name not in ("lint", "finds", "chosen")])
