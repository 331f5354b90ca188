// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <sys/types.h>

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "base/error.h"
#include "base/fd.h"
#include "base/loop.h"

namespace gcs::stdio {

// The standard streams of one process. Same numbers as gcs.v1.Stream.
enum class Stream : uint8_t { kStdin = 1, kStdout = 2, kStderr = 3 };
std::string_view StreamName(Stream stream);  // "stdin", "stdout", "stderr"

// Where a stream goes; see StreamSpec in gcs/v1/common.proto.
enum class Mode : uint8_t { kNull, kStream, kSocket };
enum class Overflow : uint8_t { kBlock, kDropOldest };

struct StreamConfig {
  Mode mode = Mode::kNull;
  base::Fd socket;  // kSocket: a connected stream socket (vsock, unix), given up to the ProcessIo
};

// What a ProcessIo consists of, for somebody who keeps it beyond the life of this process. Numbers are part
// of what is kept: never reused.
enum class Part : uint8_t {
  kIn = 1,           // write end of the process's stdin pipe
  kInSocket = 2,     // kSocket
  kInQueue = 3,      // memory file: what clients have sent and the process has not taken
  kInStageRead = 4,  // pipe between socket and pty
  kInStageWrite = 5,
  kOut = 6,  // read end of the process's stdout pipe
  kOutSocket = 7,
  kOutRing = 8,       // memory file: what clients have not acknowledged, or a socket not taken
  kOutStageRead = 9,  // pipe between pty and memory file
  kOutStageWrite = 10,
  kErr = 11,
  kErrSocket = 12,
  kErrRing = 13,
  kMaster = 14  // of the process's pty
};

inline constexpr uint64_t kMinRingBytes = 4096;
inline constexpr uint64_t kMaxRingBytes = uint64_t{64} << 20;
inline constexpr uint64_t kDefaultRingBytes = 256 << 10;
inline constexpr size_t kStdinQueueBytes =
    256 << 10;  // how much stdin the agent holds for a process that doesn't read

struct Config {
  std::string name;       // object of errors and log lines: "container/process"
  bool terminal = false;  // the process gets a pty; `err` must be kNull then
  StreamConfig in, out, err;
  Overflow overflow = Overflow::kBlock;
  uint64_t ring_bytes = 0;  // per kStream output, kMinRingBytes to kMaxRingBytes; 0 means kDefaultRingBytes
  uint16_t width = 0;       // first window size of a terminal; 0: leave the kernel's
  uint16_t height = 0;
  // Owner of the pipes' inodes, so that a process of this user can open /dev/stdout (ids of the initial user
  // namespace).
  uid_t owner_uid = 0;
  gid_t owner_gid = 0;
  int64_t drain_limit_ns = 2'000'000'000;  // see ProcessExited
  int64_t linger_ns =
      5'000'000'000;  // how long a finished socket waits for its peer's end before it is closed
  // Called when a part has been closed for good before the ProcessIo's end, so that no copy of it may stay
  // open either. On any thread, under the mutex: must not block.
  std::function<void(Part)> closed;
};

// The process's ends of its streams: blocking, close-on-exec, to be duplicated to 0, 1 and 2 by the child.
// Pipes or /dev/null (character device 1:3, verified); all invalid for a terminal. The caller closes them as
// soon as the child has its copies, or ends of stream are not seen.
struct ChildFds {
  base::Fd in, out, err;
};

// Something that a reader asked for.
struct OutputChunk {
  uint64_t offset = 0;  // of the first byte of `data`
  std::string data;     // empty: nothing there now
  bool end = false;     // the stream has ended at offset + data.size()
  uint64_t gap = 0;     // bytes between the reader's position and `offset` that the ring no longer had
};

// With kSocket only `closed` has a meaning.
struct StdinState {
  uint64_t accepted = 0;  // bytes below were handed to the process's pipe or pty
  uint64_t received = 0;  // bytes below were taken from clients; accepted plus what the queue holds
  bool closed = false;    // the process closed its stdin or ended: everything further is discarded
};

// What there is of an output, for diagnosis and tests.
struct OutputState {
  uint64_t begin = 0;    // oldest offset kept (kStream), or as `end`
  uint64_t end = 0;      // bytes taken from the process so far
  uint64_t dropped = 0;  // bytes that the ring dropped (kDropOldest) or that a lost socket could not carry
  bool ended = false;    // no byte will be added
  bool lost = false;     // kSocket: the peer went away before the end; output is read and thrown away since
};

class Core;

struct OutputSelect {
  Stream stream = Stream::kStdout;
  uint64_t offset = 0;  // first byte wanted
};

struct AttachOptions {
  std::vector<OutputSelect> outputs;
  bool want_stdin = false;
  // False: what Read returned counts as acknowledged.
  bool manual_ack = false;
  // Called on the loop's thread after any change that concerns this session: output, end, stdin accepted or
  // closed. It may be called without need, must not block, and may run once more while or just after the
  // session is destroyed: capture shared state, not the session. It may call the session.
  std::function<void()> wake;
};

// One client's view of a process's kStream streams. All calls from any thread, none blocks. Outlives its
// ProcessIo without harm: outputs then end and stdin is closed.
class Session {
 public:
  ~Session();  // detaches: gives up stdin; unacknowledged output is kept for the next client
  Session(const Session&) = delete;
  Session& operator=(const Session&) = delete;

  // At most `max` bytes (> 0) from the session's position in `stream`, which moves on. EINVAL: not attached
  // to that stream. An empty chunk without `end`: wait for the wake callback.
  base::Result<OutputChunk> Read(Stream stream, size_t max);

  // Everything below `offset` was consumed and may be freed. Lower than before is ignored; ERANGE beyond what
  // Read returned.
  base::Result<> Ack(Stream stream, uint64_t offset);

  // Queues input whose first byte has `offset`; bytes already received are skipped. Returns the received
  // offset: when it is below offset + data.size(), the queue is full and the rest (with `close`) is to be
  // given again after a wake. `close` counts when all of `data` was taken; it is ignored on a terminal. After
  // the process closed its stdin everything is taken and thrown away. ERANGE: hole before `offset`. EPIPE:
  // new bytes after a close. EINVAL: this session doesn't hold stdin.
  base::Result<uint64_t> WriteStdin(uint64_t offset, std::string_view data, bool close);

  [[nodiscard]] StdinState Stdin() const;
  [[nodiscard]] bool terminal() const;

 private:
  friend class Core;
  Session(std::shared_ptr<Core> core, uint64_t id) : core_(std::move(core)), id_(id) {}
  std::shared_ptr<Core> core_;
  const uint64_t id_;
};

// The agent's side of one process's streams. Public calls from any thread; they take a mutex that is held for
// bounded, non-blocking work only. Reading and writing happens on the loop's thread, which must not be used
// for anything that blocks (SIGPIPE is blocked on it). The loop must outlive the ProcessIo and run, or at
// least be destroyed after it.
class ProcessIo {
 public:
  struct Created;

  // Makes the pipes. On failure everything, sockets included, is closed.
  static base::Result<Created> Create(base::Loop* loop, Config config);
  // One whose parts another life of the agent has left: no byte is lost, none comes twice. Sockets are among
  // the parts, those of `config` are not used. A part that is missing was closed. A process that has ended
  // since is told by ProcessExited, as ever.
  static base::Result<std::unique_ptr<ProcessIo>> Restore(base::Loop* loop, Config config,
                                                          std::map<Part, base::Fd> parts);
  ~ProcessIo();  // ends every session's streams and closes all descriptors on the loop's thread; never calls
                 // `drained`
  ProcessIo(const ProcessIo&) = delete;
  ProcessIo& operator=(const ProcessIo&) = delete;

  // Gives the master side of the process's pty, at most once, before ProcessExited. Sets the last asked-for
  // window size. EINVAL: no terminal was asked for; EALREADY: there is one.
  base::Result<> AttachTerminal(base::Fd master);

  // EINVAL for a size of 0 or above 65535, ENOTTY without a terminal. Remembered until the terminal is
  // attached.
  base::Result<> Resize(uint32_t width, uint32_t height);

  // EINVAL: a stream that isn't kStream; EBUSY: another session holds stdin; ERANGE: an offset that lies in
  // the future.
  base::Result<std::unique_ptr<Session>> Attach(AttachOptions options);

  // To be called once, when the process (not its descendants) has ended. What it wrote is in the pipe or pty
  // by then: exactly that is still delivered, and the stream ends after it even if a descendant keeps it
  // open; there is no grace period, as nothing that the process itself wrote can arrive later. What
  // descendants write after that is read and thrown away, so that they neither block nor die of SIGPIPE. A
  // full kBlock ring keeps the rest in the pipe until it is read, however late. `drained` runs once on the
  // loop's thread: when every byte is in the ring, in the pipe behind a full ring, or with the socket;
  // drain_limit_ns later at the latest.
  void ProcessExited(std::function<void()> drained);

  [[nodiscard]] OutputState Output(Stream stream) const;
  [[nodiscard]] StdinState Stdin() const;
  // Copies of what there is open now.
  [[nodiscard]] base::Result<std::vector<std::pair<Part, base::Fd>>> Parts() const;

 private:
  explicit ProcessIo(std::shared_ptr<Core> core) : core_(std::move(core)) {}
  std::shared_ptr<Core> core_;
};

struct ProcessIo::Created {
  std::unique_ptr<ProcessIo> io;
  ChildFds child;
};

}  // namespace gcs::stdio
