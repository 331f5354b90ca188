// SPDX-License-Identifier: Apache-2.0
#define DOCTEST_CONFIG_IMPLEMENT_WITH_MAIN
#include <doctest/doctest.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>

namespace {

// Tells the runner (tests/run.py, file GCS_TEST_PROGRESS) which test case runs, so that a program that dies
// or hangs is reported with the name of the case and the ones before it still count.
class Progress : public doctest::IReporter {
 public:
  explicit Progress(const doctest::ContextOptions& /*options*/) {
    if (const char* path = getenv("GCS_TEST_PROGRESS")) file_ = fopen(path, "we");
  }
  ~Progress() override {
    if (file_ != nullptr) fclose(file_);
  }
  Progress(const Progress&) = delete;
  Progress& operator=(const Progress&) = delete;

  void test_case_start(const doctest::TestCaseData& test) override {
    begin_ = std::chrono::steady_clock::now();
    name_ = test.m_name;
    Line("start", name_, 0);
  }
  void test_case_end(const doctest::CurrentTestCaseStats& stats) override {
    const std::chrono::duration<double> took = std::chrono::steady_clock::now() - begin_;
    Line(stats.testCaseSuccess ? "pass" : "fail", name_, took.count());
  }

  void report_query(const doctest::QueryData& /*query*/) override {}
  void test_run_start() override {}
  void test_run_end(const doctest::TestRunStats& /*stats*/) override {}
  void test_case_reenter(const doctest::TestCaseData& /*test*/) override {}
  void test_case_exception(const doctest::TestCaseException& /*exception*/) override {}
  void subcase_start(const doctest::SubcaseSignature& /*subcase*/) override {}
  void subcase_end() override {}
  void log_assert(const doctest::AssertData& /*assertion*/) override {}
  void log_message(const doctest::MessageData& /*message*/) override {}
  void test_case_skipped(const doctest::TestCaseData& /*test*/) override {}

 private:
  void Line(const char* event, const std::string& name, double seconds) {
    if (file_ == nullptr) return;
    fprintf(file_, "%s\t%.6f\t%s\n", event, seconds, name.c_str());
    fflush(file_);
  }

  FILE* file_ = nullptr;
  std::string name_;
  std::chrono::steady_clock::time_point begin_;
};

REGISTER_LISTENER("progress", 1, Progress);

}  // namespace
