/* Starts a Cortex-M, runs the test vectors of a network, and tells the host by semihosting how many were answered as by
 * integer inference, how many instructions an image took, and how deep the stack went. With -DSIZE it only runs the
 * network, so that the size of the linked program is that of a network on a board. */
#include MODEL_HEADER

#include <string.h>

#ifndef SIZE
#include "vectors.h"
#endif

extern uint32_t data_start[], data_end[], data_source[], bss_start[], bss_end[], stack_top[];
int main(void);

#ifdef SIZE

int main(void) {
  for (;;) MODEL_RUN();
}

#else

#define TICK 40 /* nanoseconds of the board's 25 MHz; QEMU counts an instruction as one with -icount shift=0 */
#define PAINTED 4096

static volatile uint32_t *const systick = (volatile uint32_t *)0xE000E010; /* control, reload, value */
static uint32_t wraps;

static void semihost(uint32_t operation, const void *what) {
  register uint32_t r0 __asm__("r0") = operation;
  register const void *r1 __asm__("r1") = what;
  __asm__ volatile("bkpt 0xAB" : "+r"(r0) : "r"(r1) : "memory");
}

static void say(const char *text) { semihost(0x04, text); }

static void say_number(uint32_t number) {
  char text[11], *at = text + 10;
  *at = 0;
  do *--at = (char)('0' + number % 10);
  while (number /= 10);
  say(at);
}

void tick(void) { wraps++; }

static uint32_t now(void) { return wraps * 0x1000000u + (0xFFFFFFu - systick[2]); }

static uint32_t stack_used(uint8_t *from, int paint) { /* below a place on the stack */
  uint32_t i;
  for (i = 0; i < PAINTED; i++) {
    if (paint) {
      from[i - PAINTED] = 0xA5;
    } else if (from[i - PAINTED] != 0xA5) {
      return PAINTED - i;
    }
  }
  return 0;
}

int main(void) {
  uint32_t i, right = 0, ticks = 0, stack = 0;
  static int32_t values[sizeof vector_outputs[0] / 4];
  uint8_t *place;
  __asm__ volatile("mov %0, sp" : "=r"(place));
  systick[1] = 0xFFFFFF;
  systick[2] = 0;
  systick[0] = 7;
  for (i = 0; i < VECTORS; i++) {
    uint32_t start;
    memcpy(MODEL_INPUT(), vector_inputs[i], sizeof vector_inputs[i]);
    if (i == 0) (void)stack_used(place - 64, 1);
    start = now();
    MODEL_RUN();
    ticks += now() - start;
    if (i == 0) stack = stack_used(place - 64, 0);
    MODEL_OUTPUT(values);
    right += memcmp(values, vector_outputs[i], sizeof values) == 0;
  }
  say("vectors "), say_number(VECTORS), say(" right "), say_number(right);
  say(" instructions "), say_number(ticks / VECTORS * TICK), say(" stack "), say_number(stack), say("\n");
  semihost(0x18, (const void *)0x20026); /* the program has ended */
  return 0;
}

#endif

void reset(void) {
  memcpy(data_start, data_source, (size_t)((uint8_t *)data_end - (uint8_t *)data_start));
  memset(bss_start, 0, (size_t)((uint8_t *)bss_end - (uint8_t *)bss_start));
  (void)main();
  for (;;) {
  }
}

static void fault(void) {
  for (;;) {
  }
}

__attribute__((section(".vectors"), used)) static void (*const vectors[16])(void) = {
  (void (*)(void))stack_top, reset, fault, fault, fault, fault, fault, 0, 0, 0, 0, fault, fault, 0, fault,
#ifdef SIZE
  fault,
#else
  tick,
#endif
};
