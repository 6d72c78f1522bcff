//! How sure a mean is, when the subsets are what was drawn.

use offramp_core::SplitMix64;

/// A mean with its 95 % interval.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub struct Interval {
    /// The mean.
    pub mean: f64,
    /// 2.5 % of the resampled means lie below.
    pub low: f64,
    /// 2.5 % lie above.
    pub high: f64,
}

/// The mean over groups of the mean in each group, resampled over groups (subsets) and within them (seeds).
/// For a paired comparison hand over differences.
pub(crate) fn paired(groups: &[Vec<f64>], seed: u64) -> Interval {
    const RESAMPLES: usize = 2_000;
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len().max(1) as f64;
    let mut random = SplitMix64(seed);
    let mut means: Vec<f64> = (0..RESAMPLES)
        .map(|_| {
            let sum: f64 = (0..groups.len())
                .map(|_| {
                    let group = &groups[random.below(groups.len())];
                    let drawn: f64 = (0..group.len()).map(|_| group[random.below(group.len())]).sum();
                    drawn / group.len().max(1) as f64
                })
                .sum();
            sum / groups.len().max(1) as f64
        })
        .collect();
    means.sort_by(f64::total_cmp);
    let at = |share: f64| means[((RESAMPLES - 1) as f64 * share) as usize];
    Interval {
        mean: mean(&groups.iter().map(|group| mean(group)).collect::<Vec<_>>()),
        low: at(0.025),
        high: at(0.975),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_interval_holds_the_mean_and_shrinks_with_more_groups() {
        let group = |i: usize| vec![(i % 7) as f64, (i % 5) as f64];
        let few = paired(&(0..10).map(group).collect::<Vec<_>>(), 1);
        let many = paired(&(0..350).map(group).collect::<Vec<_>>(), 1);
        for interval in [few, many] {
            assert!(
                interval.low < interval.mean && interval.mean < interval.high,
                "{interval:?}"
            );
        }
        assert!(many.high - many.low < (few.high - few.low) / 3.0);
    }

    #[test]
    fn equal_values_leave_no_doubt() {
        let interval = paired(&[vec![0.5; 3], vec![0.5; 3]], 9);
        assert_eq!((interval.mean, interval.low, interval.high), (0.5, 0.5, 0.5));
    }
}
