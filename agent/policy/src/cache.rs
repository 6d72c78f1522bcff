//! Compiled policies by the digest of their component, so that a swap to and fro compiles nothing.
//!
//! It lives in memory only. Native code is never written where somebody could change it, and never read from where
//! somebody could have written it.

use std::collections::VecDeque;

use offramp_proto::Digest;

use crate::policy::Policy;

/// The policies that were loaded last.
pub(crate) struct Cache {
    most: usize,
    most_bytes: usize,
    /// The one that was asked for last stands last.
    policies: VecDeque<Policy>,
}

impl Cache {
    pub(crate) fn new(most: usize, most_bytes: usize) -> Cache {
        Cache {
            most,
            most_bytes,
            policies: VecDeque::new(),
        }
    }

    pub(crate) fn get(&mut self, digest: Digest) -> Option<Policy> {
        let at = self.policies.iter().position(|policy| policy.digest() == digest)?;
        let policy = self.policies.remove(at)?;
        self.policies.push_back(policy.clone());
        Some(policy)
    }

    /// Keeps a policy, and lets those go that were asked for least recently.
    pub(crate) fn put(&mut self, policy: Policy) {
        self.policies.retain(|kept| kept.digest() != policy.digest());
        self.policies.push_back(policy);
        while self.policies.len() > self.most || self.bytes() > self.most_bytes {
            self.policies.pop_front();
        }
    }

    fn bytes(&self) -> usize {
        self.policies.iter().map(Policy::bytes).sum()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::host::PolicyHost;
    use crate::limits::Limits;

    const THRESHOLD: &[u8] = include_bytes!("../tests/frozen/threshold-1.0.0.wasm");
    const PATIENCE: &[u8] = include_bytes!("../tests/frozen/patience-1.0.0.wasm");

    fn host(limits: Limits) -> PolicyHost {
        PolicyHost::new(Limits {
            deadline: Duration::from_secs(3600),
            ..limits
        })
        .unwrap()
    }

    #[test]
    fn a_component_is_compiled_once() {
        let host = host(Limits::default());
        let first = host.load(THRESHOLD).unwrap();
        host.load(PATIENCE).unwrap();
        assert!(host.load(THRESHOLD).unwrap().is(&first));
    }

    #[test]
    fn what_was_asked_for_least_recently_goes_first() {
        for limits in [
            Limits {
                cached_policies: 1,
                ..Limits::default()
            },
            Limits {
                cached_bytes: THRESHOLD.len() + PATIENCE.len() - 1,
                ..Limits::default()
            },
        ] {
            let host = host(limits);
            let first = host.load(THRESHOLD).unwrap();
            let second = host.load(PATIENCE).unwrap();
            assert!(host.load(PATIENCE).unwrap().is(&second));
            assert!(!host.load(THRESHOLD).unwrap().is(&first));
        }
    }

    #[test]
    fn one_that_is_larger_than_the_cache_is_not_kept() {
        let host = host(Limits {
            cached_bytes: THRESHOLD.len() - 1,
            ..Limits::default()
        });
        let first = host.load(THRESHOLD).unwrap();
        assert!(!host.load(THRESHOLD).unwrap().is(&first));
    }
}
