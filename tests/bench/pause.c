// SPDX-License-Identifier: Apache-2.0
// A container's program that does nothing until it is killed, without a libc.
__attribute__((noreturn, used, force_align_arg_pointer)) void _start(void) {
  for (;;) {
    long rc;
    __asm__ volatile("syscall" : "=a"(rc) : "0"(34L /* pause */) : "rcx", "r11", "memory");
  }
}
