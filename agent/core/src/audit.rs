//! What audits prove about the frames that were not audited.

/// Exact upper bound (Clopper–Pearson) of a proportion of which `hits` were seen in `trials`, one-sided at 95 %.
///
/// The error of the system is at most that of the whole network plus the share of frames on which the
/// two differ; audits are a random sample of those. Without trials the bound is 1.
pub fn upper_bound(hits: u64, trials: u64) -> f32 {
    const TAIL: f64 = 0.05;
    if hits >= trials {
        return 1.0;
    }
    // The bound is the p at which seeing `hits` or fewer has the probability TAIL; the tail falls in p.
    let (mut low, mut high) = (hits as f64 / trials as f64, 1.0);
    for _ in 0..40 {
        let p = (low + high) / 2.0;
        if tail(hits, trials, p) > TAIL {
            low = p;
        } else {
            high = p;
        }
    }
    high as f32
}

/// P(X ≤ hits) of a binomial distribution, `0 < p < 1`, summed from its largest term down.
fn tail(hits: u64, trials: u64, p: f64) -> f64 {
    let (n, k) = (trials as f64, hits as f64);
    let choose = libm::lgamma(n + 1.0) - libm::lgamma(k + 1.0) - libm::lgamma(n - k + 1.0);
    let mut term = libm::exp(choose + k * libm::log(p) + (n - k) * libm::log1p(-p));
    let odds = (1.0 - p) / p;
    let mut sum = term;
    for i in (0..hits).rev() {
        let i = i as f64;
        term *= (i + 1.0) / (n - i) * odds;
        sum += term;
        if term < sum * 1e-12 {
            break; // p is above hits/trials, so that the terms only fall from here
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bound_agrees_with_the_published_values() {
        // One-sided 95 %: 1 − 0.05^(1/n) without hits; tables of Clopper and Pearson otherwise.
        assert!((upper_bound(0, 100) - 0.0295).abs() < 1e-4);
        assert!((upper_bound(5, 100) - 0.1023).abs() < 2e-4);
        assert!((upper_bound(1, 10) - 0.3942).abs() < 2e-4);
    }

    #[test]
    fn bound_is_one_without_audits_and_when_all_disagree() {
        assert_eq!(upper_bound(0, 0), 1.0);
        assert_eq!(upper_bound(7, 7), 1.0);
    }

    #[test]
    fn bound_tightens_with_audits_and_stays_above_the_rate() {
        let mut last = 1.0;
        for n in [20, 200, 2_000, 200_000, 20_000_000] {
            let bound = upper_bound(n / 10, n);
            assert!(bound > 0.1 && bound < last, "{n}: {bound}");
            last = bound;
        }
    }
}
