# SPDX-License-Identifier: Apache-2.0
"""The file list of the image (initrd/files.list) and what its rows become."""

import os
import re
import stat
from dataclasses import dataclass

TYPES = {"dir": stat.S_IFDIR, "file": stat.S_IFREG, "link": stat.S_IFLNK, "char": stat.S_IFCHR, "block": stat.S_IFBLK}


class ListError(Exception):
    """A row that is wrong or a source that is missing."""


@dataclass(frozen=True)
class Entry:
    """One object of the image. `path` has no leading slash; `data` is a file's content or a link's target."""

    path: str
    mode: int  # with the type's bits
    uid: int
    gid: int
    data: bytes = b""
    major: int = 0
    minor: int = 0


@dataclass(frozen=True)
class Row:
    kind: str
    path: str
    mode: int
    uid: int
    gid: int
    argument: str
    where: str


def parse(text, name="files.list"):
    """Rows `type path mode uid gid [source | target | major:minor | module]`; # begins a comment."""
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        where = f"{name}:{number}"
        words = line.split("#", 1)[0].split()
        if not words:
            continue
        kind = words[0]
        expected = 5 if kind == "dir" else 6
        if kind not in TYPES and kind != "module":
            raise ListError(f"{where}: unknown type {kind}")
        if len(words) != expected:
            raise ListError(f"{where}: {kind} takes {expected} words, this has {len(words)}")
        path, mode, uid, gid = words[1:5]
        if not path.startswith("/") or path != os.path.normpath(path) or path == "/":
            raise ListError(f"{where}: {path} is no absolute path in its shortest form")
        if not re.fullmatch("0[0-7]{3,4}", mode) or not uid.isdecimal() or not gid.isdecimal():
            raise ListError(f"{where}: mode, uid or gid is none")
        rows.append(Row(kind, path[1:], int(mode, 8), int(uid), int(gid), words[5] if expected == 6 else "", where))
    return rows


def _read(path, where):
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise ListError(f"{where}: {error}") from error


def _module_closure(directory, wanted, where):
    """Module files of `wanted` and what they need, dependencies first, as modules.dep (depmod) tells."""
    needs = {}
    for line in _read(os.path.join(directory, "modules.dep"), where).decode().splitlines():
        module, _, rest = line.partition(":")
        needs[module] = rest.split()
    order = []

    def visit(module):
        # depmod lists all dependencies of a module, the deepest last.
        for need in reversed(needs[module]):
            if need not in order:
                order.append(need)
        if module not in order:
            order.append(module)

    for name in wanted:
        found = [m for m in needs if os.path.basename(m).split(".ko")[0] == name]
        if len(found) != 1:
            raise ListError(f"{where}: the kernel has {len(found)} modules named {name}")
        if not found[0].endswith(".ko"):
            raise ListError(f"{where}: {found[0]} is compressed")
        visit(found[0])
    return order


def _add_modules(rows, kernel, add):
    base = os.path.join(kernel, "modules")
    where = rows[0].where
    releases = sorted(os.listdir(base)) if os.path.isdir(base) else []
    if len(releases) != 1:
        raise ListError(f"{where}: {base} has {len(releases)} kernel releases")
    directory = os.path.join(base, releases[0])
    row = rows[0]
    root = f"{row.path}/{releases[0]}"
    load = _module_closure(directory, [r.argument for r in rows], where)
    directories = {root}
    for module in load:
        parent = os.path.dirname(module)
        while parent:
            directories.add(f"{root}/{parent}")
            parent = os.path.dirname(parent)
    for name in sorted(directories):
        add(Entry(name, stat.S_IFDIR | 0o755, row.uid, row.gid), row.where)
    for module in load:
        content = _read(os.path.join(directory, module), where)
        add(Entry(f"{root}/{module}", stat.S_IFREG | row.mode, row.uid, row.gid, content), row.where)
    content = "".join(f"{module}\n" for module in load).encode()
    add(Entry(f"{root}/modules.load", stat.S_IFREG | row.mode, row.uid, row.gid, content), row.where)


def resolve(rows, programs, kernel):
    """Entries of `rows`, by path. `programs` maps the sources of file rows (program:NAME and the like) to files of this
    machine; `kernel` is the directory that scripts/build-kernel made."""
    entries = {}

    def add(entry, where):
        if entry.path in entries:
            raise ListError(f"{where}: /{entry.path} is there already")
        entries[entry.path] = entry

    for row in rows:
        if row.kind == "module":
            continue
        major = minor = 0
        data = b""
        if row.kind == "link":
            data = row.argument.encode()
        elif row.kind == "file":
            if row.argument not in programs:
                raise ListError(f"{row.where}: there is no {row.argument}")
            data = _read(programs[row.argument], row.where)
        elif row.kind != "dir":
            match = re.fullmatch(r"(\d+):(\d+)", row.argument)
            if not match:
                raise ListError(f"{row.where}: {row.argument} is no device number")
            major, minor = int(match[1]), int(match[2])
        add(Entry(row.path, TYPES[row.kind] | row.mode, row.uid, row.gid, data, major, minor), row.where)
    modules = [row for row in rows if row.kind == "module"]
    if modules:
        _add_modules(modules, kernel, add)
    for entry in entries.values():
        parent = os.path.dirname(entry.path)
        if parent and (parent not in entries or not stat.S_ISDIR(entries[parent].mode)):
            raise ListError(f"/{entry.path}: its directory is not in the list")
    # By path, so that a directory comes before what is in it and the order of the list does not matter.
    return [entries[path] for path in sorted(entries)]
