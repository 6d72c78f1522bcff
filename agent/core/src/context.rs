//! What a camera has learned, one record per context.
//!
//! A context is whatever the operator tells apart: a camera's position, day and night, a line's product.
//! A change A → B → A finds the heads of A again. There is a fixed number of records; a new context
//! takes over the one that was used least recently.

use alloc::vec::Vec;

use crate::guard::Guard;
use crate::head::Head;
use crate::learner::LearnerSettings;
use crate::prior::Prior;

/// Heads and class frequencies of one context.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Adapted {
    /// Heads of all exits but the last, which has no teacher.
    pub(crate) heads: Vec<Head>,
    pub(crate) prior: Prior,
}

impl Adapted {
    /// Nothing learned.
    pub(crate) fn new(base: &[Head]) -> Self {
        let early = base.len().saturating_sub(1);
        Self {
            heads: base[..early].to_vec(),
            prior: Prior::new(base[0].classes()),
        }
    }

    /// Forgets everything, without giving back memory.
    pub(crate) fn reset(&mut self, base: &[Head]) {
        for (head, base) in self.heads.iter_mut().zip(base) {
            head.copy_from(base);
        }
        self.prior.reset();
    }

    pub(crate) fn bytes(&self) -> usize {
        4 * (self.heads.iter().map(Head::numbers).sum::<usize>() + Prior::NUMBERS * self.prior.counts().len())
    }

    /// Takes over what another has learned, without allocating.
    pub(crate) fn copy_from(&mut self, other: &Self) {
        for (head, other) in self.heads.iter_mut().zip(&other.heads) {
            head.copy_from(other);
        }
        self.prior.copy_from(&other.prior);
    }
}

/// A record.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    pub(crate) key: u64,
    /// Frame count when it was last entered.
    pub(crate) entered: u64,
    pub(crate) adapted: Adapted,
    pub(crate) guard: Guard,
}

/// All records of a camera, and which one is in force.
#[derive(Clone, Debug)]
pub(crate) struct Contexts {
    records: Vec<Context>,
    current: usize,
    entries: u64,
}

impl Contexts {
    /// One record, for context 0.
    pub(crate) fn new(base: &[Head], threshold: f32) -> Self {
        let first = Context {
            key: 0,
            entered: 0,
            adapted: Adapted::new(base),
            guard: Guard::new(base, threshold),
        };
        Self {
            records: alloc::vec![first],
            current: 0,
            entries: 0,
        }
    }

    /// Records that were saved, least recently entered first; the last one is in force. At least one.
    pub(crate) fn from_saved(saved: Vec<(u64, Adapted, Guard)>) -> Option<Self> {
        let current = saved.len().checked_sub(1)?;
        let records: Vec<_> = saved
            .into_iter()
            .zip(0..)
            .map(|((key, adapted, guard), entered)| Context {
                key,
                entered,
                adapted,
                guard,
            })
            .collect();
        Some(Self {
            entries: current as u64,
            current,
            records,
        })
    }

    /// Records, least recently entered first.
    pub(crate) fn by_age(&self) -> Vec<&Context> {
        let mut records: Vec<_> = self.records.iter().collect();
        records.sort_by_key(|record| record.entered);
        records
    }

    /// Changes to the context of a key, with at most `limit` records. Allocates only for a key that
    /// comes up for the first time while there is room.
    pub(crate) fn enter(&mut self, key: u64, limit: usize, base: &[Head], threshold: f32) {
        if self.records[self.current].key == key {
            return;
        }
        self.entries += 1;
        let entered = self.entries;
        if let Some(known) = self.records.iter().position(|record| record.key == key) {
            self.current = known;
        } else if self.records.len() < limit {
            self.current = self.records.len();
            self.records.push(Context {
                key,
                entered,
                adapted: Adapted::new(base),
                guard: Guard::new(base, threshold),
            });
        } else {
            let oldest = (0..self.records.len()).min_by_key(|i| self.records[*i].entered);
            self.current = oldest.expect("there is at least one record");
            let record = &mut self.records[self.current];
            record.key = key;
            record.adapted.reset(base);
            record.guard.reset(base, threshold);
        }
        self.records[self.current].entered = entered;
    }

    /// Lets go of the least recently entered records beyond `limit`; never of the one in force.
    pub(crate) fn shrink(&mut self, limit: usize) {
        while self.records.len() > limit.max(1) {
            let key = self.records[self.current].key;
            let oldest = (0..self.records.len())
                .filter(|i| *i != self.current)
                .min_by_key(|i| self.records[*i].entered)
                .expect("there is more than one record");
            self.records.swap_remove(oldest);
            self.current = self.records.iter().position(|r| r.key == key).expect("it was kept");
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.records.len()
    }

    pub(crate) fn bytes(&self) -> usize {
        self.records.iter().map(|r| r.adapted.bytes() + r.guard.bytes()).sum()
    }

    /// What is in force.
    pub(crate) fn adapted(&self) -> &Adapted {
        &self.records[self.current].adapted
    }

    pub(crate) fn guard(&self) -> &Guard {
        &self.records[self.current].guard
    }

    /// What is in force, and who watches over it.
    pub(crate) fn current_mut(&mut self) -> (&mut Adapted, &mut Guard) {
        let record = &mut self.records[self.current];
        (&mut record.adapted, &mut record.guard)
    }

    /// Forgets what every context has learned.
    pub(crate) fn reset(&mut self, base: &[Head], threshold: f32) {
        for record in &mut self.records {
            record.adapted.reset(base);
            record.guard.reset(base, threshold);
        }
    }

    /// Sets the threshold of every context.
    pub(crate) fn set_threshold(&mut self, threshold: f32) {
        for record in &mut self.records {
            record.guard.threshold = threshold;
            record.guard.good_threshold = threshold;
        }
    }

    /// After a change of settings, which the offsets depend on.
    pub(crate) fn refresh(&mut self, settings: &LearnerSettings) {
        for record in &mut self.records {
            record.adapted.prior.refresh(&settings.prior);
            record.guard.good.prior.refresh(&settings.prior);
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use super::*;

    fn base() -> Vec<Head> {
        (0..2)
            .map(|_| Head::new(2, 1, vec![1.0, -1.0], vec![0.0; 2]).unwrap())
            .collect()
    }

    #[test]
    fn a_context_is_found_again_as_it_was_left() {
        let base = base();
        let mut contexts = Contexts::new(&base, 0.8);
        contexts.current_mut().0.heads[0].weights[0] = 7.0;
        contexts.enter(1, 2, &base, 0.8);
        assert_eq!(contexts.adapted().heads[0], base[0]);
        contexts.enter(0, 2, &base, 0.8);
        assert_eq!(contexts.adapted().heads[0].weights[0], 7.0);
    }

    #[test]
    fn the_least_recently_used_one_goes() {
        let base = base();
        let mut contexts = Contexts::new(&base, 0.8);
        contexts.enter(1, 2, &base, 0.8);
        contexts.current_mut().0.heads[0].weights[0] = 1.5;
        contexts.enter(0, 2, &base, 0.8);
        contexts.enter(2, 2, &base, 0.8); // takes the place of 1
        assert_eq!((contexts.len(), contexts.adapted().heads[0] == base[0]), (2, true));
        contexts.enter(1, 2, &base, 0.8); // takes the place of 0
        assert_eq!(contexts.adapted().heads[0], base[0]);
        assert_eq!(contexts.by_age().iter().map(|c| c.key).collect::<Vec<_>>(), [2, 1]);
    }

    #[test]
    fn a_lower_limit_keeps_the_one_in_force() {
        let base = base();
        let mut contexts = Contexts::new(&base, 0.8);
        for key in 1..5 {
            contexts.enter(key, 8, &base, 0.8);
        }
        contexts.enter(2, 8, &base, 0.8);
        contexts.shrink(2);
        assert_eq!(contexts.by_age().iter().map(|c| c.key).collect::<Vec<_>>(), [4, 2]);
        assert_eq!(contexts.records[contexts.current].key, 2);
    }
}
