// SPDX-License-Identifier: Apache-2.0
#include <cstdlib>
#include <map>
#include <random>
#include <set>
#include <thread>

#include "unit/stdio_support.h"

namespace gcs::stdio::test {
namespace {

// Random acts of a process and of clients that come and go, against what the contract allows: every byte has
// the value of its offset, positions never go back, nothing unacknowledged is lost with a blocking ring, and
// everything ends.
class Interleaving {
 public:
  Interleaving(LoopThread& loop, uint64_t seed, Overflow overflow)
      : random_(seed), blocking_(overflow == Overflow::kBlock), total_(Pick(0, 400'000)) {
    auto made = Streams(loop, uint64_t{1} << Pick(12, 17), overflow);
    io_ = std::move(made.io);
    child_ = std::move(made.child);
  }

  void Run() {
    std::thread process([this, seed = random_()] {
      std::mt19937_64 random(seed);
      for (uint64_t at = 0; at < total_;) {
        const uint64_t piece =
            std::min<uint64_t>(total_ - at, 1 + random() % (random() % 4 == 0 ? 100'000 : 3000));
        if (!WriteAll(child_.out.get(), Pattern(at, piece))) return;
        at += piece;
      }
      child_.out.Reset();
    });
    std::thread input([this, seed = random_()] {
      std::mt19937_64 random(seed);
      uint64_t at = 0;
      while (at < kInput) {
        const std::string got =
            ReadAll(child_.in.get(), std::min<uint64_t>(kInput - at, 1 + random() % 20'000));
        if (got.empty() || got != Pattern(at, got.size())) break;
        at += got.size();
      }
      input_ok_ = at == kInput && ReadAll(child_.in.get()).empty();
    });
    const auto deadline = std::chrono::steady_clock::now() + 60s;
    while (!(done_ && sent_ == kInput && closed_)) {
      REQUIRE(std::chrono::steady_clock::now() < deadline);
      Step();
    }
    process.join();
    input.join();
    CHECK(input_ok_);
    if (blocking_) CHECK(consumed_ == total_);
  }

 private:
  static constexpr uint64_t kInput = 150'000;

  uint64_t Pick(uint64_t low, uint64_t high) { return low + random_() % (high - low + 1); }

  struct Reader {
    std::unique_ptr<Session> session;
    uint64_t position;
    uint64_t acked;
    bool main;  // resumes where the last main reader stood; the others come and go as they like
    bool holds_stdin;
  };

  void Step() {
    const uint64_t act = Pick(0, 99);
    if (act < 5 && readers_.size() < 4) return Attach();
    if (readers_.empty()) return Attach();
    const size_t index = Pick(0, readers_.size() - 1);
    Reader& reader = readers_[index];
    if (act < 8) {
      if (reader.main) main_ = false;
      readers_.erase(readers_.begin() + static_cast<ptrdiff_t>(index));
    } else if (act < 60) {
      Read(reader);
    } else if (act < 80) {
      reader.acked = Pick(reader.acked, reader.position);
      REQUIRE(reader.session->Ack(Stream::kStdout, reader.acked));
    } else if (reader.holds_stdin) {
      Write(reader);
    } else {
      std::this_thread::yield();
    }
  }

  void Attach() {
    const bool main = !main_;
    AttachOptions options;
    const uint64_t from = main ? consumed_ : Pick(0, io_->Output(Stream::kStdout).end);
    options.outputs.push_back({Stream::kStdout, from});
    options.manual_ack = true;
    options.want_stdin = Pick(0, 1) == 0;
    auto made = io_->Attach(options);
    if (!made) {
      REQUIRE(made.error().err == EBUSY);
      return;
    }
    main_ = true;
    const StdinState state = (*made)->Stdin();
    REQUIRE(state.received <= kInput);
    readers_.push_back({std::move(*made), from, from, main, options.want_stdin});
  }

  void Read(Reader& reader) {
    auto chunk = reader.session->Read(Stream::kStdout, Pick(1, 70'000));
    REQUIRE(chunk);
    REQUIRE(chunk->offset == reader.position + chunk->gap);
    REQUIRE(chunk->data == Pattern(chunk->offset, chunk->data.size()));
    // While it is attached, and for what it hadn't acknowledged when it left with nobody else there, a reader
    // finds all bytes.
    if (blocking_ && reader.position != reader.acked) REQUIRE(chunk->gap == 0);
    reader.position = chunk->offset + chunk->data.size();
    if (reader.main) consumed_ = reader.position;
    if (chunk->end) {
      REQUIRE(reader.position == total_);
      if (reader.main) done_ = true;
    }
  }

  void Write(Reader& reader) {
    // Sometimes from further back than needed, as a client does that lost its connection.
    const uint64_t from = sent_ - Pick(0, std::min<uint64_t>(sent_, 5000));
    const uint64_t size = std::min<uint64_t>(kInput - from, Pick(0, 30'000));
    const bool close = from + size == kInput;
    auto received = reader.session->WriteStdin(from, Pattern(from, size), close);
    REQUIRE(received);
    REQUIRE(*received >= sent_);
    sent_ = *received;
    if (close && sent_ == kInput) closed_ = true;
  }

  std::mt19937_64 random_;
  const bool blocking_;
  const uint64_t total_;
  std::unique_ptr<ProcessIo> io_;
  ChildFds child_;
  std::vector<Reader> readers_;
  bool main_ = false;
  uint64_t consumed_ = 0;
  bool done_ = false;
  uint64_t sent_ = 0;
  bool closed_ = false;
  bool input_ok_ = false;
};

TEST_CASE("random interleavings of a process and its clients keep the streams' contract") {
  const char* given = getenv("GCS_TEST_SEED");
  const uint64_t seed = given != nullptr ? strtoull(given, nullptr, 0) : std::random_device()();
  const char* rounds_text = getenv("GCS_TEST_ROUNDS");
  const int rounds = rounds_text != nullptr ? static_cast<int>(strtol(rounds_text, nullptr, 10)) : 20;
  MESSAGE("GCS_TEST_SEED=" << seed);
  LoopThread loop;
  for (int round = 0; round < rounds; ++round) {
    CAPTURE(round);
    Interleaving(loop, seed + static_cast<uint64_t>(round),
                 round % 3 == 2 ? Overflow::kDropOldest : Overflow::kBlock)
        .Run();
  }
  loop.Sync();
}

}  // namespace
}  // namespace gcs::stdio::test
