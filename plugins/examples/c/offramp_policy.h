/* The contract offramp:policy@1 for C: what plugins/wit/policy.wit says, as the canonical ABI lays it out.
 *
 * A policy defines `configure` and `decide` below; `offramp policy build FILE.wasm -o POLICY.wasm` makes a component of
 * what the linker made. No C library is needed. */
#ifndef OFFRAMP_POLICY_H
#define OFFRAMP_POLICY_H

#include <stddef.h>
#include <stdint.h>

/* Verdicts. */
enum { GO_ON = 0, LEAVE = 1, LEAVE_WITHOUT_LEARNING = 2, AUDIT = 3 };

/* Kinds of parameters. */
enum { FLAG = 0, INTEGER = 1, NUMBER = 2, TEXT = 3 };

struct text {
    const char *bytes; /* UTF-8, not ended by 0 */
    uint32_t length;
};

struct parameter {
    struct text name;
    uint8_t kind;
    union {
        uint8_t flag;
        int64_t integer;
        double number;
        struct text text;
    } value;
};

/* What `configure` gives: `refused` is 0, or 1 with a reason. */
struct result {
    uint8_t refused;
    struct text reason;
};

/* Prepares the policy for a network of so many classes and exits: `costs` has one number for each exit. */
__attribute__((export_name("offramp:policy/guest@1.1.0#configure")))
struct result *configure(uint32_t classes, const float *costs, uint32_t exits, const struct parameter *parameters,
                         uint32_t count);

/* Decides about one frame at one exit. A fact that the device does not know is NaN, or 0 for a count. */
__attribute__((export_name("offramp:policy/guest@1.1.0#decide")))
int decide(uint32_t exit, uint32_t exits, uint32_t class, float confidence, float margin, float entropy, int agreement,
           float change, float cost, float next_cost, float time_left, uint32_t queue_depth, float temperature,
           float power_budget, float battery, float threshold);

/* Memory for what the device hands over. It does so once, for `configure`: nothing is ever freed. */
extern unsigned char __heap_base;

__attribute__((export_name("cabi_realloc")))
void *cabi_realloc(void *old, size_t old_size, size_t align, size_t size) {
    static uintptr_t next;
    (void)old;
    (void)old_size;
    if (next == 0)
        next = (uintptr_t)&__heap_base;
    uintptr_t at = (next + align - 1) & ~(uintptr_t)(align - 1);
    next = at + size;
    uintptr_t there = (uintptr_t)__builtin_wasm_memory_size(0) << 16;
    if (next > there && __builtin_wasm_memory_grow(0, (next - there + 65535) >> 16) == (size_t)-1)
        __builtin_trap();
    return (void *)at;
}

/* Whether a text is this one. */
static inline int is(struct text text, const char *other) {
    uint32_t at = 0;
    while (at < text.length && other[at] != 0 && text.bytes[at] == other[at])
        at++;
    return at == text.length && other[at] == 0;
}

#endif
