# SPDX-License-Identifier: Apache-2.0
"""Reads linuxkit.yml, strictly: the few forms that it uses and nothing else, so that no YAML library is needed and a form that
would be read differently by LinuxKit cannot slip in."""

import re

KEYS = {"kernel": {"image", "cmdline", "binary", "tar"}, "files": {"path", "source", "contents", "symlink", "directory", "mode"}}
REQUIRED = {"kernel": {"image", "cmdline", "binary", "tar"}, "files": {"path", "mode"}}


class YamlError(Exception):
    """A line that this reader does not take."""


def _scalar(text, where):
    if re.fullmatch(r'"[^"\\]*"', text):
        return text[1:-1]
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/:+-]*[A-Za-z0-9]", text) and ": " not in text and not text.isdecimal():
        return text
    raise YamlError(f"{where}: {text} is no plain word and not in double quotes")


def parse(text):
    """{"kernel": {...}, "init": [names], "files": [{...}]}."""
    result = {}
    section = None
    for number, line in enumerate(text.splitlines(), 1):
        where = f"linuxkit.yml:{number}"
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        if match := re.fullmatch(r"(kernel|init|files):", line):
            section = match[1]
            if section in result:
                raise YamlError(f"{where}: a second {section}")
            result[section] = {} if section == "kernel" else []
        elif section == "init" and (match := re.fullmatch(r"  - (\S+)", line)):
            result["init"].append(_scalar(match[1], where))
        elif section == "files" and (match := re.fullmatch(r"  - (\w+): (.+)", line)):
            result["files"].append({})
            _set(result["files"][-1], section, match, where)
        elif section == "files" and result["files"] and (match := re.fullmatch(r"    (\w+): (.+)", line)):
            _set(result["files"][-1], section, match, where)
        elif section == "kernel" and (match := re.fullmatch(r"  (\w+): (.+)", line)):
            _set(result["kernel"], section, match, where)
        else:
            raise YamlError(f"{where}: not understood: {line}")
    for section in ("kernel", "init"):
        if not result.get(section):
            raise YamlError(f"linuxkit.yml has no {section}")
    for section, values in (("kernel", [result["kernel"]]), ("files", result.get("files", []))):
        for value in values:
            if missing := REQUIRED[section] - value.keys():
                # Without a mode LinuxKit makes the file's directory 0700.
                raise YamlError(f"linuxkit.yml: an entry of {section} lacks {', '.join(sorted(missing))}")
    return result


def _set(mapping, section, match, where):
    key, value = match[1], _scalar(match[2], where)
    if key not in KEYS[section] or key in mapping:
        raise YamlError(f"{where}: {key} is unknown in {section} or there twice")
    mapping[key] = value


def full_name(name):
    """What LinuxKit makes of an image's name without a registry."""
    first = name.split("/", 1)[0]
    if "/" not in name:
        return f"docker.io/library/{name}"
    return name if "." in first or ":" in first or first == "localhost" else f"docker.io/{name}"
