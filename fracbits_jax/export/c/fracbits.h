/* Inference with integers of a few bits: what the tables of model.c mean, and how they are run.
 *
 * A tensor lies in one block of memory, the arena, without gaps: codes of 1 to 16 bits, the lowest bit of a code and of
 * a byte first; integers of 32 bits; sums of 64. A code stands for the integer times code - shift.
 *
 * A step makes accumulators of 32 bits, FB_BLOCK channels of FB_PIXELS positions at a time, and hands them to its
 * program: a list of operations on vectors of up to FB_BLOCK elements that ends with stores.
 */
#ifndef FRACBITS_H
#define FRACBITS_H

#include <stdint.h>

#define FB_BLOCK 32    /* channels that are computed at once */
#define FB_PIXELS 8    /* positions that share the unpacking of a kernel */
#define FB_CHUNK 64    /* weights of a channel that are unpacked at once */
#define FB_TAPS 25     /* the largest window of a depthwise convolution that has a loop of its own */
#define FB_REGISTERS 6 /* vectors that a program has */

typedef struct {
  uint32_t offset; /* in the arena, in bytes */
  int32_t shift;   /* of what codes stand for */
  uint8_t times;
  uint8_t bits; /* 0 to 16: codes; 32: integers; 64: sums */
} fb_tensor;

/* result = clip((multiplier x + offset) / 2^shift, least, most), rounded half to even; element i has the numbers i modulo
 * period, and the limits i modulo limits. */
typedef struct {
  const int32_t *multiplier;
  const int64_t *offset;
  const uint8_t *shift;
  const int32_t *least;
  const int32_t *most;
  uint32_t period;
  uint32_t limits;
} fb_scaling;

typedef enum {
  FB_LOAD,    /* to = the integers of a tensor */
  FB_RESCALE, /* to = scaling(a) */
  FB_SIGN,    /* to = 1 where scaling, before its shift, is not negative, else 0; clipped */
  FB_ADD,     /* to = a + b */
  FB_SET,     /* to = number */
  FB_STORE,   /* tensor = a, as codes or integers */
  FB_ENCODE,  /* tensor = the codes of the integers a */
  FB_SUM      /* tensor, one sum for each of `number` channels, += a */
} fb_operation;

typedef struct {
  uint8_t op; /* an fb_operation */
  uint8_t to, a, b;
  int32_t number;
  const fb_tensor *tensor;
  const fb_scaling *scaling;
} fb_op;

typedef struct {
  const fb_op *ops;
  uint16_t count;
} fb_program;

/* A convolution of [height, width, channels]; a dense layer is one of 1 x 1. The codes of an output channel's kernel are
 * a row, [kernel height, kernel width, channels of its group], from a whole byte on. A row's byte has its bits in the
 * lowest five bits; form, the rest, says what a code stands for: 0: code - 2^(bits - 1), 1: 2 code - (2^bits - 1),
 * 2: 2 code - 2^bits. */
typedef struct {
  const fb_tensor *in;
  const uint8_t *weights;
  const uint8_t *rows; /* of each output channel; where several_rows is 0, of all */
  uint16_t height, width, channels;
  uint16_t kernel_height, kernel_width;
  uint16_t stride_y, stride_x;
  uint16_t dilation_y, dilation_x;
  int16_t top, left; /* padding */
  uint16_t groups;
  uint16_t out_channels;
  uint8_t several_rows;
  uint8_t kind; /* an fb_kind */
} fb_product;

typedef enum { FB_CONV, FB_DEPTHWISE, FB_GENERAL } fb_kind;

/* One product, or two that are added by the program, which finds them in the vectors 0 and 1. */
typedef struct {
  const fb_product *products;
  uint8_t count;
  uint16_t out_height, out_width, out_channels;
  uint16_t block; /* channels at once, at most FB_BLOCK */
} fb_products;

/* Sums or maxima of windows; `before` reads what is taken into vector 0. */
typedef struct {
  fb_program before;
  uint16_t height, width, channels;
  uint16_t window_height, window_width;
  uint16_t stride_y, stride_x;
  uint16_t dilation_y, dilation_x;
  int16_t top, left;
  uint16_t out_height, out_width;
  uint8_t is_max;
  uint8_t shift; /* by which sums are divided, as powers of two */
} fb_pool;

/* Sums that earlier steps have made, divided by 2^shift. */
typedef struct {
  const fb_tensor *in;
  uint32_t channels;
  uint8_t shift;
} fb_sums;

/* Elements at other places: those from low to high along each axis come from start + strides, the others are 0. With an
 * index each element has its own place, below 0 for 0. */
typedef struct {
  const fb_tensor *in;
  const int32_t *index;
  uint32_t size[4], low[4], high[4];
  int32_t stride[4];
  int32_t start;
} fb_move;

/* Tensors one behind the other along an axis: `inner` elements of each, `outer` times. */
typedef struct {
  const fb_tensor *in;
  uint32_t inner;
} fb_part;

typedef struct {
  const fb_part *parts;
  uint32_t count, outer;
} fb_concatenation;

typedef struct {
  uint32_t elements;
} fb_elements;

typedef struct {
  void (*run)(uint8_t *arena, const void *what, const fb_program *program);
  const void *what;
  fb_program program;
  const fb_tensor *sums; /* set to 0 before, where there are any */
  uint32_t sums_count;
} fb_step;

void fb_run_products(uint8_t *arena, const void *what, const fb_program *program);
void fb_run_pool(uint8_t *arena, const void *what, const fb_program *program);
void fb_run_sums(uint8_t *arena, const void *what, const fb_program *program);
void fb_run_move(uint8_t *arena, const void *what, const fb_program *program);
void fb_run_concatenation(uint8_t *arena, const void *what, const fb_program *program);
void fb_run_elements(uint8_t *arena, const void *what, const fb_program *program);

/* Runs steps, one after the other. */
void fb_run(uint8_t *arena, const fb_step *steps, uint32_t count);

/* Reads `count` integers of a tensor from element `first` on. */
void fb_read(const uint8_t *arena, const fb_tensor *tensor, uint32_t first, uint32_t count, int32_t *out);

#endif
