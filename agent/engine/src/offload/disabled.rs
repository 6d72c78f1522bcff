//! What stands in for the offload in a program that was built without it: nothing can be running, nor away.

use std::sync::Arc;

use offramp_model::Package;

use super::{Offload, OffloadProblem, Offloaded, Provider, Survey};
use crate::error::Cause;
use crate::stage::{Handed, Held, Stage};

#[derive(Clone, Debug)]
pub(crate) enum Away {}

#[derive(Debug)]
pub(crate) enum Running {}

impl Running {
    pub(crate) fn provider(&self) -> Provider {
        match *self {}
    }

    pub(crate) fn batch(&self) -> usize {
        match *self {}
    }

    pub(crate) fn takes(&self, _: usize) -> usize {
        match *self {}
    }

    pub(crate) fn run(&self, _: &[Handed], _: &mut [&mut Held], _: impl Fn(usize) -> bool) -> Result<(), Cause> {
        match *self {}
    }
}

pub(crate) fn start(_: &Package, _: usize, _: &[Stage], _: Offload, _: Arc<Offloaded>) -> Result<(), OffloadProblem> {
    Err(OffloadProblem::NotBuilt)
}

pub(crate) fn survey(_: &Package, _: usize, _: &[Stage], _: &Offload) -> Survey {
    Survey {
        library: Err(OffloadProblem::NotBuilt),
        providers: Vec::new(),
    }
}
