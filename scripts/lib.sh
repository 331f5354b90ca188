# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=bash
# What the scripts share. Sourced, after `set -euo pipefail`; progress goes to stderr, results to stdout.

export LC_ALL=C.UTF-8
umask 022
if [[ -z ${HOME:-} ]]; then
  HOME=$(getent passwd "$(id -u)" | cut -d: -f6)
  export HOME
fi

GCS_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# Everything expensive is kept here by the hash of what it was made from; CI saves this one directory.
export GCS_CACHE=${GCS_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/lcow-gcs}
export CCACHE_DIR=${CCACHE_DIR:-$GCS_CACHE/ccache}
export CCACHE_MAXSIZE=${CCACHE_MAXSIZE:-3G}

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
die() {
  say "error: $*"
  exit 1
}

now() { date +%s; }

# tidy DIR: removes the entries of a cache directory that nobody has used (touched) for 30 days.
tidy() { find "$1" -mindepth 1 -maxdepth 1 ! -name '.*' -mtime +30 -exec rm -rf {} + 2>/dev/null || true; }

# stage TEXT COMMAND...: runs the command and says how long it took.
stage() {
  local text=$1 begin status=0
  shift
  begin=$(now)
  printf '==> %s\n' "$text" >&2
  "$@" || status=$?
  if ((status == 0)); then
    printf '==> %s: %s s\n' "$text" "$(($(now) - begin))" >&2
  else
    printf '==> %s: FAILED (exit code %s) after %s s\n' "$text" "$status" "$(($(now) - begin))" >&2
  fi
  return "$status"
}

# configure PRESET [cmake arguments]: (re)configures build/PRESET when needed; ninja itself notices changed CMake files.
configure() {
  local preset=$1 log status=0
  shift
  log=$(mktemp)
  if [[ ! -f $GCS_ROOT/build/$preset/build.ninja || $# -gt 0 ]]; then
    (cd "$GCS_ROOT" && cmake --preset "$preset" "$@") >"$log" 2>&1 || status=$?
  fi
  # A test or a folder that came or went changes the list of tests, which is written by CMake.
  if ((status == 0)); then
    ninja -C "$GCS_ROOT/build/$preset" build.ninja >"$log" 2>&1 || status=$?
  fi
  ((status == 0)) || cat "$log" >&2
  rm -f "$log"
  ((status == 0)) || die "configuring build/$preset failed"
}

# build PRESET TARGET...: progress on one line on a terminal, one line per 10 % else; everything on an error.
build() {
  local preset=$1 log status=0
  shift
  log=$(mktemp)
  NINJA_STATUS='[%p %f/%t %es] ' ninja -C "$GCS_ROOT/build/$preset" -j "${GCS_JOBS:-$(nproc)}" "$@" 2>&1 |
    tee "$log" | build_progress "$preset" || status=$?
  if ((status != 0)); then
    grep -v '^\[ *[0-9]*%' "$log" >&2 || true
    say "building ${*:-all} in build/$preset failed"
  fi
  rm -f "$log"
  return "$status"
}

build_progress() {
  local preset=$1 line percent last=-1
  while IFS= read -r line; do
    [[ $line =~ ^\[\ *([0-9]+)%\ ([0-9]+/[0-9]+)\ ([0-9.]+s)\] ]] || continue
    percent=${BASH_REMATCH[1]}
    if [[ -t 2 ]]; then
      printf '\r\033[K  %s: %s %% (%s, %s)' "$preset" "$percent" "${BASH_REMATCH[2]}" "${BASH_REMATCH[3]}" >&2
    elif ((percent / 10 > last / 10 || last < 0)); then
      printf '  %s: %s %% (%s, %s)\n' "$preset" "$percent" "${BASH_REMATCH[2]}" "${BASH_REMATCH[3]}" >&2
      last=$percent
    fi
  done
  [[ ! -t 2 ]] || printf '\n' >&2
}
