/* The loops of integer inference; fracbits.h says what they work on. */
#include "fracbits.h"

#include <string.h>
#ifdef __ARM_FEATURE_DSP
#include <arm_acle.h>
#endif

/* ---- integers of a few bits ---- */

static uint32_t word_at(const uint8_t *at) {
  return (uint32_t)at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

static uint32_t code_at(const uint8_t *base, uint32_t index, uint32_t bits) {
  const uint32_t bit = index * bits;
  const uint8_t *at = base + (bit >> 3);
  const uint32_t low = bit & 7, end = low + bits;
  uint32_t word = at[0];
  if (end > 8) word |= (uint32_t)at[1] << 8;
  if (end > 16) word |= (uint32_t)at[2] << 16;
  return (word >> low) & ((1u << bits) - 1u);
}

static void unpack_fours(uint32_t word, int shift, int16_t *out) {
  uint32_t i;
  for (i = 0; i < 8; i++) out[i] = (int16_t)((int)(word >> 4 * i & 15u) - shift);
}

static void unpack_twos(uint32_t word, int shift, int16_t *out) {
  uint32_t i;
  for (i = 0; i < 16; i++) out[i] = (int16_t)((int)(word >> 2 * i & 3u) - shift);
}

static void unpack_doubled(uint32_t word, uint32_t bits, int shift, int16_t *out) {
  const uint32_t mask = (1u << bits) - 1u;
  uint32_t i;
  for (i = 0; i < 32 / bits; i++, word >>= bits) out[i] = (int16_t)(2 * (int)(word & mask) - shift);
}

/* Codes of up to 8 bits as the integers that they stand for. */
static void unpack(const uint8_t *base, uint32_t first, uint32_t bits, uint32_t count, int times, int shift,
                   int16_t *out) {
  uint32_t i = 0;
  if (bits == 8) {
    const uint8_t *at = base + first;
    if (times == 1) {
      for (; i < count; i++) out[i] = (int16_t)(at[i] - shift);
    } else {
      for (; i < count; i++) out[i] = (int16_t)(2 * at[i] - shift);
    }
    return;
  }
  if (bits == 4 || bits == 2) { /* a word at a time */
    const uint32_t each = 32 / bits, in_byte = 8 / bits;
    for (; i < count && (first + i) % in_byte; i++) {
      out[i] = (int16_t)(times * (int)code_at(base, first + i, bits) - shift);
    }
    const uint8_t *at = base + (first + i) / in_byte;
    for (; i + each <= count; i += each, at += 4) {
      const uint32_t word = word_at(at);
      if (times != 1) {
        unpack_doubled(word, bits, shift, out + i);
      } else if (bits == 4) {
        unpack_fours(word, shift, out + i);
      } else {
        unpack_twos(word, shift, out + i);
      }
    }
  }
  if (bits == 0) {
    for (; i < count; i++) out[i] = (int16_t)-shift;
  }
  if (i < count) {
    const uint32_t bit = (first + i) * bits, mask = (1u << bits) - 1u;
    const uint8_t *at = base + (bit >> 3);
    uint32_t word = *at++ >> (bit & 7), held = 8 - (bit & 7);
    for (; i < count; i++, word >>= bits, held -= bits) {
      for (; held < bits; held += 8) word |= (uint32_t)*at++ << held;
      out[i] = (int16_t)(times * (int)(word & mask) - shift);
    }
  }
}

static void pack(uint8_t *base, uint32_t first, uint32_t bits, uint32_t count, const int32_t *codes) {
  uint32_t i;
  if (bits == 8) {
    for (i = 0; i < count; i++) base[first + i] = (uint8_t)codes[i];
    return;
  }
  if (bits == 0 || count == 0) return;
  uint32_t bit = first * bits;
  uint8_t *at = base + (bit >> 3);
  uint32_t held = bit & 7; /* bits of the word that are there */
  uint32_t word = at[0] & ((1u << held) - 1u);
  for (i = 0; i < count; i++) {
    word |= (uint32_t)codes[i] << held;
    held += bits;
    for (; held >= 8; held -= 8, word >>= 8) *at++ = (uint8_t)word;
  }
  if (held) *at = (uint8_t)(word | (at[0] & ~((1u << held) - 1u)));
}

static int32_t integer_at(const uint8_t *arena, const fb_tensor *tensor, uint32_t index) {
  const uint8_t *base = arena + tensor->offset;
  if (tensor->bits == 32) {
    int32_t x;
    memcpy(&x, base + 4 * index, 4);
    return x;
  }
  return tensor->times * (int32_t)(tensor->bits ? code_at(base, index, tensor->bits) : 0u) - tensor->shift;
}

void fb_read(const uint8_t *arena, const fb_tensor *tensor, uint32_t first, uint32_t count, int32_t *out) {
  uint32_t i;
  if (tensor->bits == 32) {
    memcpy(out, arena + tensor->offset + 4 * first, 4 * count);
    return;
  }
  for (i = 0; i < count; i++) out[i] = integer_at(arena, tensor, first + i);
}

/* ---- programs ---- */

static int64_t halved(int64_t x, uint32_t shift) { /* x / 2^shift, rounded half to even */
  const int64_t whole = x >> shift;
  const uint64_t rest = (uint64_t)x & (((uint64_t)1 << shift) - 1), half = ((uint64_t)1 << shift) >> 1;
  return whole + (rest > half || (shift && rest == half && (whole & 1)));
}

static void rescale(const fb_scaling *s, uint32_t first, uint32_t count, const int32_t *x, int32_t *out) {
  uint32_t i, k = first % s->period, l = first % s->limits;
  for (i = 0; i < count; i++) {
    const int64_t scaled = halved((int64_t)x[i] * s->multiplier[k] + s->offset[k], s->shift[k]);
    const int32_t least = s->least[l], most = s->most[l];
    out[i] = scaled < least ? least : scaled > most ? most : (int32_t)scaled;
    if (++k == s->period) k = 0;
    if (++l == s->limits) l = 0;
  }
}

static void sign(const fb_scaling *s, uint32_t first, uint32_t count, const int32_t *x, int32_t *out) {
  uint32_t i, k = first % s->period, l = first % s->limits;
  for (i = 0; i < count; i++) {
    const int32_t one = (int64_t)x[i] * s->multiplier[k] + s->offset[k] >= 0;
    const int32_t least = s->least[l], most = s->most[l];
    out[i] = one < least ? least : one > most ? most : one;
    if (++k == s->period) k = 0;
    if (++l == s->limits) l = 0;
  }
}

static void add_to_sums(uint8_t *sums, uint32_t channels, uint32_t first, uint32_t count, const int32_t *x) {
  uint32_t i, channel = first % channels;
  for (i = 0; i < count; i++) {
    int64_t sum;
    memcpy(&sum, sums + 8 * channel, 8);
    sum += x[i];
    memcpy(sums + 8 * channel, &sum, 8);
    if (++channel == channels) channel = 0;
  }
}

/* Runs a program for `count` elements, of which the first is number `first`. */
static void run_program(uint8_t *arena, const fb_program *program, uint32_t first, uint32_t count,
                        int32_t vectors[FB_REGISTERS][FB_BLOCK]) {
  uint32_t i, n;
  for (n = 0; n < program->count; n++) {
    const fb_op *op = program->ops + n;
    int32_t *to = vectors[op->to];
    const int32_t *a = vectors[op->a], *b = vectors[op->b];
    switch (op->op) {
      case FB_LOAD:
        fb_read(arena, op->tensor, first, count, to);
        break;
      case FB_RESCALE:
        rescale(op->scaling, first, count, a, to);
        break;
      case FB_SIGN:
        sign(op->scaling, first, count, a, to);
        break;
      case FB_ADD:
        for (i = 0; i < count; i++) to[i] = a[i] + b[i];
        break;
      case FB_SET:
        for (i = 0; i < count; i++) to[i] = op->number;
        break;
      case FB_STORE:
        if (op->tensor->bits == 32) {
          memcpy(arena + op->tensor->offset + 4 * first, a, 4 * count);
        } else {
          pack(arena + op->tensor->offset, first, op->tensor->bits, count, a);
        }
        break;
      case FB_ENCODE:
        for (i = 0; i < count; i++) to[i] = (a[i] + op->tensor->shift) / op->tensor->times;
        pack(arena + op->tensor->offset, first, op->tensor->bits, count, to);
        break;
      case FB_SUM:
        add_to_sums(arena + op->tensor->offset, (uint32_t)op->number, first, count, a);
        break;
      default:
        break;
    }
  }
}

/* ---- products ---- */

typedef int32_t fb_tile[FB_PIXELS][FB_BLOCK];

typedef struct {
  uint32_t y, x, pixels; /* positions: pixels of them from x on */
  uint32_t first, count; /* channels */
} fb_place;

static uint32_t row_of(const fb_product *p, uint32_t channel) { return p->rows[p->several_rows ? channel : 0]; }

static uint32_t row_bytes(uint32_t row, uint32_t weights) { return (weights * (row & 31u) + 7) >> 3; }

static void row_form(uint32_t row, int *times, int *shift) {
  const int levels = 1 << (row & 31u);
  *times = row >> 5 ? 2 : 1;
  *shift = row >> 5 == 0 ? levels / 2 : row >> 5 == 1 ? levels - 1 : levels;
}

#ifdef __ARM_FEATURE_DSP /* two products an instruction, on Cortex-M4 and above */
static int32_t dot(const int16_t *a, const int16_t *b, uint32_t count) {
  int32_t sum = 0;
  uint32_t i, j;
  for (i = 0; i < count; i += 16) {
    for (j = 0; j < 16; j += 2) {
      int16x2_t x, y;
      memcpy(&x, a + i + j, sizeof x);
      memcpy(&y, b + i + j, sizeof y);
      sum = __smlad(x, y, sum);
    }
  }
  return sum;
}
#else
static int32_t dot(const int16_t *a, const int16_t *b, uint32_t count) { /* a multiple of 16 */
  int32_t sum = 0;
  uint32_t i, j;
  for (i = 0; i < count; i += 16) {
    for (j = 0; j < 16; j++) sum += a[i + j] * b[i + j];
  }
  return sum;
}
#endif

/* Weights first, ..., first + count - 1 of a row see these inputs. */
static void gather(const uint8_t *arena, const fb_product *p, uint32_t y, uint32_t x, uint32_t group, uint32_t first,
                   uint32_t count, int16_t *out) {
  const uint32_t depth = p->channels / p->groups;
  uint32_t tap = first / depth, channel = first % depth;
  while (count) {
    const uint32_t run = count < depth - channel ? count : depth - channel;
    const int32_t at_y = (int32_t)(y * p->stride_y + tap / p->kernel_width * p->dilation_y) - p->top;
    const int32_t at_x = (int32_t)(x * p->stride_x + tap % p->kernel_width * p->dilation_x) - p->left;
    if (at_y < 0 || at_x < 0 || at_y >= p->height || at_x >= p->width) {
      memset(out, 0, run * sizeof *out);
    } else {
      const uint32_t element = ((uint32_t)at_y * p->width + (uint32_t)at_x) * p->channels + group * depth + channel;
      unpack(arena + p->in->offset, element, p->in->bits, run, p->in->times, p->in->shift, out);
    }
    out += run;
    count -= run;
    channel = 0;
    tap++;
  }
}

/* Each of these computes a tile of accumulators and gives the weights of the next channels. */

static const uint8_t *conv_tile(const uint8_t *arena, const fb_product *p, const uint8_t *weights,
                                const fb_place *place, fb_tile sums) {
  const uint32_t length = (uint32_t)p->kernel_height * p->kernel_width * (p->channels / p->groups);
  const uint32_t group = place->first / (p->out_channels / p->groups);
  int16_t inputs[FB_PIXELS][FB_CHUNK], kernel[FB_CHUNK] = {0};
  const uint8_t *row = weights;
  uint32_t start, j, n;
  memset(sums, 0, sizeof(fb_tile));
  for (start = 0; start < length; start += FB_CHUNK) {
    const uint32_t count = length - start < FB_CHUNK ? length - start : FB_CHUNK, whole = (count + 15) & ~15u;
    for (n = 0; n < place->pixels; n++) {
      gather(arena, p, place->y, place->x + n, group, start, count, inputs[n]);
      memset(inputs[n] + count, 0, (whole - count) * sizeof(int16_t));
    }
    row = weights;
    for (j = 0; j < place->count; j++) {
      const uint32_t form = row_of(p, place->first + j), bits = form & 31u;
      if (bits) {
        int times, shift;
        row_form(form, &times, &shift);
        unpack(row + (start * bits >> 3), 0, bits, count, times, shift, kernel);
        for (n = 0; n < place->pixels; n++) sums[n][j] += dot(inputs[n], kernel, whole);
      }
      row += row_bytes(form, length);
    }
  }
  return row;
}

static const uint8_t *depthwise_tile(const uint8_t *arena, const fb_product *p, const uint8_t *weights,
                                     const fb_place *place, fb_tile sums) {
  const uint32_t taps = (uint32_t)p->kernel_height * p->kernel_width;
  int16_t kernel[FB_TAPS][FB_BLOCK] = {{0}}, row[FB_TAPS], inputs[FB_BLOCK] = {0};
  uint32_t j, n, tap;
  for (j = 0; j < place->count; j++) {
    const uint32_t form = row_of(p, place->first + j), bits = form & 31u;
    int times, shift;
    row_form(form, &times, &shift);
    if (bits) {
      unpack(weights, 0, bits, taps, times, shift, row);
      for (tap = 0; tap < taps; tap++) kernel[tap][j] = row[tap];
    }
    weights += row_bytes(form, taps);
  }
  memset(sums, 0, sizeof(fb_tile));
  for (n = 0; n < place->pixels; n++) {
    for (tap = 0; tap < taps; tap++) {
      const int32_t y = (int32_t)(place->y * p->stride_y + tap / p->kernel_width * p->dilation_y) - p->top;
      const int32_t x = (int32_t)((place->x + n) * p->stride_x + tap % p->kernel_width * p->dilation_x) - p->left;
      if (y >= 0 && x >= 0 && y < p->height && x < p->width) {
        const uint32_t element = ((uint32_t)y * p->width + (uint32_t)x) * p->channels + place->first;
        unpack(arena + p->in->offset, element, p->in->bits, place->count, p->in->times, p->in->shift, inputs);
        for (j = 0; j < FB_BLOCK; j++) sums[n][j] += inputs[j] * kernel[tap][j];
      }
    }
  }
  return weights;
}

/* Any bit-widths, integers of 32 bits as inputs, depth multipliers: one product after the other. */
static const uint8_t *general_tile(const uint8_t *arena, const fb_product *p, const uint8_t *weights,
                                   const fb_place *place, fb_tile sums) {
  const uint32_t depth = p->channels / p->groups, taps = (uint32_t)p->kernel_height * p->kernel_width;
  uint32_t j, n, tap, channel;
  memset(sums, 0, sizeof(fb_tile));
  for (j = 0; j < place->count; j++) {
    const uint32_t form = row_of(p, place->first + j), bits = form & 31u;
    const uint32_t group = (place->first + j) / (p->out_channels / p->groups);
    int times, shift;
    row_form(form, &times, &shift);
    for (n = 0; bits && n < place->pixels; n++) {
      for (tap = 0; tap < taps; tap++) {
        const int32_t y = (int32_t)(place->y * p->stride_y + tap / p->kernel_width * p->dilation_y) - p->top;
        const int32_t x = (int32_t)((place->x + n) * p->stride_x + tap % p->kernel_width * p->dilation_x) - p->left;
        if (y < 0 || x < 0 || y >= p->height || x >= p->width) continue;
        const uint32_t element = ((uint32_t)y * p->width + (uint32_t)x) * p->channels + group * depth;
        for (channel = 0; channel < depth; channel++) {
          const int32_t weight = times * (int32_t)code_at(weights, tap * depth + channel, bits) - shift;
          sums[n][j] += weight * integer_at(arena, p->in, element + channel);
        }
      }
    }
    weights += row_bytes(form, taps * depth);
  }
  return weights;
}

static const uint8_t *tile(const uint8_t *arena, const fb_product *p, const uint8_t *weights, const fb_place *place,
                           fb_tile sums) {
  if (p->kind == FB_CONV) return conv_tile(arena, p, weights, place, sums);
  if (p->kind == FB_DEPTHWISE) return depthwise_tile(arena, p, weights, place, sums);
  return general_tile(arena, p, weights, place, sums);
}

void fb_run_products(uint8_t *arena, const void *what, const fb_program *program) {
  const fb_products *step = (const fb_products *)what;
  fb_tile sums[2];
  int32_t vectors[FB_REGISTERS][FB_BLOCK];
  fb_place place;
  uint32_t i, n;
  for (place.y = 0; place.y < step->out_height; place.y++) {
    for (place.x = 0; place.x < step->out_width; place.x += FB_PIXELS) {
      const uint8_t *weights[2] = {step->products[0].weights, step->products[step->count - 1].weights};
      const uint32_t left = step->out_width - place.x;
      place.pixels = left < FB_PIXELS ? left : FB_PIXELS;
      for (place.first = 0; place.first < step->out_channels; place.first += step->block) {
        const uint32_t rest = step->out_channels - place.first;
        place.count = rest < step->block ? rest : step->block;
        for (i = 0; i < step->count; i++) weights[i] = tile(arena, step->products + i, weights[i], &place, sums[i]);
        for (n = 0; n < place.pixels; n++) {
          const uint32_t pixel = place.y * step->out_width + place.x + n;
          for (i = 0; i < step->count; i++) memcpy(vectors[i], sums[i][n], sizeof vectors[i]);
          run_program(arena, program, pixel * step->out_channels + place.first, place.count, vectors);
        }
      }
    }
  }
}

/* ---- what reads its operands from memory ---- */

void fb_run_pool(uint8_t *arena, const void *what, const fb_program *program) {
  const fb_pool *p = (const fb_pool *)what;
  int32_t vectors[FB_REGISTERS][FB_BLOCK];
  int64_t sums[FB_BLOCK];
  uint32_t y, x, channel, dy, dx, i;
  for (y = 0; y < p->out_height; y++) {
    for (x = 0; x < p->out_width; x++) {
      for (channel = 0; channel < p->channels; channel += FB_BLOCK) {
        const uint32_t left = p->channels - channel, count = left < FB_BLOCK ? left : FB_BLOCK;
        for (i = 0; i < FB_BLOCK; i++) sums[i] = p->is_max ? INT32_MIN : 0;
        for (dy = 0; dy < p->window_height; dy++) {
          for (dx = 0; dx < p->window_width; dx++) {
            const int32_t at_y = (int32_t)(y * p->stride_y + dy * p->dilation_y) - p->top;
            const int32_t at_x = (int32_t)(x * p->stride_x + dx * p->dilation_x) - p->left;
            if (at_y < 0 || at_x < 0 || at_y >= p->height || at_x >= p->width) continue;
            run_program(arena, &p->before, ((uint32_t)at_y * p->width + (uint32_t)at_x) * p->channels + channel,
                        count, vectors);
            for (i = 0; i < count; i++) {
              if (!p->is_max) {
                sums[i] += vectors[0][i];
              } else if (vectors[0][i] > sums[i]) {
                sums[i] = vectors[0][i];
              }
            }
          }
        }
        for (i = 0; i < count; i++) vectors[0][i] = (int32_t)halved(sums[i], p->shift);
        run_program(arena, program, (y * p->out_width + x) * p->channels + channel, count, vectors);
      }
    }
  }
}

void fb_run_sums(uint8_t *arena, const void *what, const fb_program *program) {
  const fb_sums *p = (const fb_sums *)what;
  int32_t vectors[FB_REGISTERS][FB_BLOCK];
  uint32_t channel, i;
  for (channel = 0; channel < p->channels; channel += FB_BLOCK) {
    const uint32_t left = p->channels - channel, count = left < FB_BLOCK ? left : FB_BLOCK;
    for (i = 0; i < count; i++) {
      int64_t sum;
      memcpy(&sum, arena + p->in->offset + 8 * (channel + i), 8);
      vectors[0][i] = (int32_t)halved(sum, p->shift);
    }
    run_program(arena, program, channel, count, vectors);
  }
}

static int32_t moved_from(const fb_move *p, uint32_t element) { /* below 0: nowhere */
  uint32_t axis, at[4];
  int32_t from = p->start;
  if (p->index) return p->index[element];
  for (axis = 4; axis-- > 0; element /= p->size[axis]) at[axis] = element % p->size[axis];
  for (axis = 0; axis < 4; axis++) {
    if (at[axis] < p->low[axis] || at[axis] >= p->high[axis]) return -1;
    from += (int32_t)(at[axis] - p->low[axis]) * p->stride[axis];
  }
  return from;
}

void fb_run_move(uint8_t *arena, const void *what, const fb_program *program) {
  const fb_move *p = (const fb_move *)what;
  const uint32_t elements = p->size[0] * p->size[1] * p->size[2] * p->size[3];
  int32_t vectors[FB_REGISTERS][FB_BLOCK];
  uint32_t first, i;
  for (first = 0; first < elements; first += FB_BLOCK) {
    const uint32_t count = elements - first < FB_BLOCK ? elements - first : FB_BLOCK;
    for (i = 0; i < count; i++) {
      const int32_t from = moved_from(p, first + i);
      vectors[0][i] = from < 0 ? 0 : integer_at(arena, p->in, (uint32_t)from);
    }
    run_program(arena, program, first, count, vectors);
  }
}

void fb_run_concatenation(uint8_t *arena, const void *what, const fb_program *program) {
  const fb_concatenation *p = (const fb_concatenation *)what;
  int32_t vectors[FB_REGISTERS][FB_BLOCK];
  uint32_t outer, part, first, element = 0;
  for (outer = 0; outer < p->outer; outer++) {
    for (part = 0; part < p->count; part++) {
      const uint32_t inner = p->parts[part].inner;
      for (first = 0; first < inner; first += FB_BLOCK) {
        const uint32_t count = inner - first < FB_BLOCK ? inner - first : FB_BLOCK;
        fb_read(arena, p->parts[part].in, outer * inner + first, count, vectors[0]);
        run_program(arena, program, element, count, vectors);
        element += count;
      }
    }
  }
}

void fb_run_elements(uint8_t *arena, const void *what, const fb_program *program) {
  const uint32_t elements = ((const fb_elements *)what)->elements;
  int32_t vectors[FB_REGISTERS][FB_BLOCK];
  uint32_t first;
  for (first = 0; first < elements; first += FB_BLOCK) {
    const uint32_t count = elements - first < FB_BLOCK ? elements - first : FB_BLOCK;
    run_program(arena, program, first, count, vectors);
  }
}

void fb_run(uint8_t *arena, const fb_step *steps, uint32_t count) {
  uint32_t i;
  for (i = 0; i < count; i++) {
    if (steps[i].sums) memset(arena + steps[i].sums->offset, 0, 8 * steps[i].sums_count);
    steps[i].run(arena, steps[i].what, &steps[i].program);
  }
}
