/* Leaves where the confidence reaches `threshold` (0.9), or where two exits in a row name the same class and the second
 * is sure by `floor` (0.6) at least. */
#include "offramp_policy.h"

static float threshold = 0.9f;
static float least = 0.6f;

struct result *configure(uint32_t classes, const float *costs, uint32_t exits, const struct parameter *parameters,
                         uint32_t count) {
    static struct result result;
    static const char unknown[] = "the parameters are `threshold` and `floor`, numbers from 0 to 1";
    (void)classes;
    (void)costs;
    (void)exits;
    for (uint32_t i = 0; i < count; i++) {
        const struct parameter *p = &parameters[i];
        double number = p->kind == INTEGER ? (double)p->value.integer : p->value.number;
        int fits = (p->kind == INTEGER || p->kind == NUMBER) && number >= 0 && number <= 1;
        if (fits && is(p->name, "threshold")) {
            threshold = (float)number;
        } else if (fits && is(p->name, "floor")) {
            least = (float)number;
        } else {
            result.refused = 1;
            result.reason.bytes = unknown;
            result.reason.length = sizeof unknown - 1;
        }
    }
    return &result;
}

int decide(uint32_t exit, uint32_t exits, uint32_t class, float confidence, float margin, float entropy, int agreement,
           float change, float cost, float next_cost, float time_left, uint32_t queue_depth, float temperature,
           float power_budget, float battery, float of_device) {
    if (confidence >= threshold || (agreement && confidence >= least))
        return LEAVE;
    return GO_ON;
}
