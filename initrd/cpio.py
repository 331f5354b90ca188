# SPDX-License-Identifier: Apache-2.0
"""A writer and a reader of newc archives (Documentation/driver-api/early-userspace/buffer-format.rst of the kernel)."""

import stat

from filelist import Entry


def _header(ino, mode, uid, gid, nlink, mtime, size, rmajor, rminor, name):
    fields = (ino, mode, uid, gid, nlink, mtime, size, 0, 0, rmajor, rminor, len(name) + 1, 0)
    return b"070701" + b"".join(b"%08x" % field for field in fields) + name + b"\0"


def _pad(data):
    return data + b"\0" * (-len(data) % 4)


def write(entries, epoch):
    """The archive of `entries` (directories before their content); every time in it is `epoch`."""
    out = bytearray()
    for ino, entry in enumerate(entries, 1):
        nlink = 2 if stat.S_ISDIR(entry.mode) else 1
        header = _header(ino, entry.mode, entry.uid, entry.gid, nlink, epoch, len(entry.data), entry.major, entry.minor,
                         entry.path.encode())
        out += _pad(header) + _pad(entry.data)
    out += _pad(_header(0, 0, 0, 0, 1, 0, 0, 0, 0, b"TRAILER!!!"))
    return bytes(out)


def read(data):
    """Entries of an archive and the set of times in it."""
    entries = []
    times = set()
    at = 0
    while True:
        if data[at:at + 6] != b"070701":
            raise ValueError(f"no newc header at {at}")
        fields = [int(data[at + 6 + 8 * i:at + 14 + 8 * i], 16) for i in range(13)]
        _, mode, uid, gid, _, mtime, size, _, _, major, minor, name_size, _ = fields
        name = data[at + 110:at + 110 + name_size - 1].decode()
        at += 110 + name_size
        at += -at % 4
        if name == "TRAILER!!!":
            return entries, times
        entries.append(Entry(name, mode, uid, gid, data[at:at + size], major, minor))
        times.add(mtime)
        at += size
        at += -at % 4
