//! Policies that were compiled lately, by digest.
//!
//! Machine code stays in this process: it is never written, and never read from outside. A cache on disk would save the
//! tens of milliseconds that a policy takes to compile after a restart, and would be the one place of a device where a
//! file becomes machine code.

use std::collections::VecDeque;

use offramp_proto::Digest;

use crate::policy::Policy;

/// Most policies that are kept.
const POLICIES: usize = 8;
/// Most bytes of their component files together; compiled, they take some ten times as much.
const BYTES: usize = 2 << 20;

/// The latest is the first.
#[derive(Debug, Default)]
pub(crate) struct Cache(VecDeque<Policy>);

impl Cache {
    pub(crate) fn get(&mut self, digest: Digest) -> Option<Policy> {
        let place = self.0.iter().position(|policy| policy.digest() == digest)?;
        let policy = self.0.remove(place)?;
        self.0.push_front(policy.clone());
        Some(policy)
    }

    pub(crate) fn put(&mut self, policy: &Policy) {
        self.0.retain(|kept| kept.digest() != policy.digest());
        self.0.push_front(policy.clone());
        let bytes = |kept: &VecDeque<Policy>| kept.iter().map(Policy::bytes).sum::<usize>();
        while self.0.len() > POLICIES || (self.0.len() > 1 && bytes(&self.0) > BYTES) {
            self.0.pop_back();
        }
    }
}
