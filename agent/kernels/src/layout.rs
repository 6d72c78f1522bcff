//! Where tensors lie: which have room for one image and which for all that run at a time, and which buffers they
//! share.
//!
//! Reading weights once for several images pays where a layer has few rows, at the coarse end of a network. At its
//! fine end it does not: there the maps are what is read, and those of one image stay in the cache from step to step
//! while those of eight do not. So a plan goes by segments: in some all steps are done for one image after another,
//! in the others each step is done for all of them at once. These are the layers that are worth it, and whatever lies
//! wholly between tensors that are kept for all images anyway.

use super::arithmetic::Packed;
use super::draft::{Draft, Id, Linear, Op, Work};
use super::plan::{Kernel, Part, Plan, Segment, Slot, Step};
use super::simd::Isa;

const FOREVER: usize = usize::MAX;

/// A draft whose every op changes what it is allowed to change.
pub(crate) struct Layout {
    draft: Draft,
    outputs: Vec<Id>,
    /// Per tensor the last op that reads it.
    last_use: Vec<usize>,
    /// Per tensor whether it is kept for all images side by side.
    joint: Vec<bool>,
}

impl Layout {
    pub(crate) fn new(mut draft: Draft, outputs: Vec<Id>) -> Self {
        copy_what_stays(&mut draft, &outputs);
        let last_use = last_use(&draft, &outputs);
        let joint = vec![false; draft.sizes.len()];
        let mut layout = Self {
            draft,
            outputs,
            last_use,
            joint,
        };
        layout.join();
        layout
    }

    /// Decides which tensors are kept for all images side by side: those of layers that are worth it, what shares
    /// memory with them, and what one segment leaves to another.
    fn join(&mut self) {
        for op in &self.draft.ops {
            if let Work::Linear(layer) = &op.work
                && is_worth_joining(layer, self.draft.sizes[op.y.0])
            {
                op.tensors().for_each(|id| self.joint[id.0] = true);
            }
        }
        loop {
            let before = self.joint.iter().filter(|joint| **joint).count();
            for op in &self.draft.ops {
                if let Some(onto) = op.onto {
                    let joint = self.joint[onto.0] || self.joint[op.y.0];
                    (self.joint[onto.0], self.joint[op.y.0]) = (joint, joint);
                }
            }
            let mut made_in = vec![None; self.draft.sizes.len()];
            let (mut segment, mut together) = (0, false);
            for op in &self.draft.ops {
                if self.is_together(op) != together {
                    together = !together;
                    segment += 1;
                }
                // Inputs and outputs have memory of each image's own.
                for id in op.reads().filter(|id| self.last_use[id.0] != FOREVER) {
                    self.joint[id.0] |= made_in[id.0] != Some(segment);
                }
                made_in[op.y.0] = Some(segment);
            }
            if self.joint.iter().filter(|joint| **joint).count() == before {
                return;
            }
        }
    }

    /// Per tensor whether it is in the memory of an output.
    fn given(&self) -> Vec<bool> {
        let mut given = vec![false; self.draft.sizes.len()];
        self.outputs.iter().for_each(|id| given[id.0] = true);
        for op in self.draft.ops.iter().rev() {
            if let Some(onto) = op.onto {
                given[onto.0] |= given[op.y.0];
            }
        }
        given
    }

    /// Whether an op is done for all images at once.
    fn is_together(&self, op: &Op) -> bool {
        op.tensors().all(|id| self.joint[id.0])
    }

    /// Gives every tensor a buffer; one that is not needed any more serves another.
    pub(crate) fn plan(self, isa: Isa) -> Plan {
        let mut slots = Slots::default();
        let mut slot_of = vec![None; self.draft.sizes.len()];
        for id in &self.draft.inputs {
            // Of its own: it changes hands with the caller's.
            slot_of[id.0] = Some(slots.add(self.draft.sizes[id.0], self.joint[id.0]));
        }
        let given = self.given();
        let together: Vec<bool> = self.draft.ops.iter().map(|op| self.is_together(op)).collect();
        let mut steps: Vec<Step> = Vec::with_capacity(together.len());
        let mut held = Vec::new();
        for (at, op) in self.draft.ops.into_iter().enumerate() {
            if at > 0 && together[at - 1] != together[at] {
                slots.free.append(&mut held);
            }
            let part = |id: Id, slot_of: &[Option<usize>]| Part {
                slot: slot_of[id.0].unwrap_or_default(),
                values: self.draft.sizes[id.0],
            };
            slot_of[op.y.0] = match op.onto {
                Some(onto) => slot_of[onto.0],
                // As long as it is: it changes hands with the caller's, which would have to be made longer each time.
                None if given[op.y.0] => Some(slots.add(self.draft.sizes[op.y.0], self.joint[op.y.0])),
                None => Some(slots.take(self.draft.sizes[op.y.0], self.joint[op.y.0])),
            };
            steps.push(Step {
                x: op.x.map(|x| part(x, &slot_of)),
                y: part(op.y, &slot_of),
                kernel: kernel(op.work, op.onto.is_some(), isa),
            });
            if let Some(x) = op.x.filter(|x| self.last_use[x.0] == at) {
                // While images go one by one, those after this one still have to read it.
                let free = if self.joint[x.0] && !together[at] {
                    &mut held
                } else {
                    &mut slots.free
                };
                free.extend(slot_of[x.0]);
            }
        }
        let mut steps = steps.into_iter();
        let segments = together.chunk_by(|a, b| a == b);
        let segments = segments.map(|ops| Segment {
            together: ops[0],
            steps: steps.by_ref().take(ops.len()).collect(),
        });
        let segments = segments.collect();
        let parts = |ids: &[Id]| {
            ids.iter()
                .map(|id| Part {
                    slot: slot_of[id.0].unwrap_or_default(),
                    values: self.draft.sizes[id.0],
                })
                .collect()
        };
        Plan {
            isa,
            segments,
            inputs: parts(&self.draft.inputs),
            outputs: parts(&self.outputs),
            slots: slots.all,
        }
    }
}

/// Whether a linear layer gains by having the rows of several images at a time: its weights, kept as halves, are at
/// least twice what an image brings of its own.
fn is_worth_joining(layer: &Linear, y: usize) -> bool {
    let outputs = layer.bias.len();
    let rows = y / outputs.max(1);
    // A half has half of a value's bytes.
    4 * rows * (layer.inputs + outputs) <= layer.weights.len()
}

/// Copies tensors that an op would change though they are needed as they were.
fn copy_what_stays(draft: &mut Draft, outputs: &[Id]) {
    let last_use = last_use(draft, outputs);
    for (at, op) in std::mem::take(&mut draft.ops).into_iter().enumerate() {
        let onto = match op.onto {
            Some(onto) if last_use[onto.0] != at || op.x == Some(onto) => {
                Some(draft.compute(Work::Copy, onto, draft.sizes[onto.0]))
            }
            onto => onto,
        };
        draft.ops.push(Op { onto, ..op });
    }
}

/// Inputs are handed back as they were, and outputs are taken at the end: they are needed for ever.
fn last_use(draft: &Draft, outputs: &[Id]) -> Vec<usize> {
    let mut last_use = vec![0; draft.sizes.len()];
    for (at, op) in draft.ops.iter().enumerate() {
        op.reads().for_each(|id| last_use[id.0] = at);
    }
    for id in draft.inputs.iter().chain(outputs) {
        last_use[id.0] = FOREVER;
    }
    last_use
}

/// Buffers, and those that nobody needs at the moment.
#[derive(Default)]
struct Slots {
    all: Vec<Slot>,
    free: Vec<usize>,
}

impl Slots {
    fn add(&mut self, values: usize, joint: bool) -> usize {
        self.all.push(Slot { values, joint });
        self.all.len() - 1
    }

    /// The smallest free one that is large enough, or the largest, which then grows.
    fn take(&mut self, values: usize, joint: bool) -> usize {
        let all = &mut self.all;
        let alike = || (0..self.free.len()).filter(|i| all[self.free[*i]].joint == joint);
        let size = |i: &usize| all[self.free[*i]].values;
        let best = alike().filter(|i| size(i) >= values).min_by_key(size);
        match best.or_else(|| alike().max_by_key(size)) {
            Some(i) => {
                let slot = self.free.swap_remove(i);
                all[slot].values = all[slot].values.max(values);
                slot
            }
            None => self.add(values, joint),
        }
    }
}

/// An op's work, ready to run.
fn kernel(work: Work, onto: bool, isa: Isa) -> Kernel {
    match work {
        Work::Copy => Kernel::Copy,
        Work::Gather(window) => Kernel::Gather(window),
        Work::Linear(Linear {
            weights,
            inputs,
            bias,
            activation,
        }) => Kernel::Linear {
            layer: Packed::new(&weights, inputs, &bias, activation, isa.panel()),
            onto,
        },
        Work::Depthwise(layer) => Kernel::Depthwise(layer),
        Work::Norm(layer) => Kernel::Norm(layer),
        Work::Add(scale) => Kernel::Add(scale),
        Work::Shift(bias) => Kernel::Shift(bias),
        Work::Activate(activation) => Kernel::Activate(activation),
        Work::AddUpsampled { fine, factors } => Kernel::AddUpsampled { fine, factors },
        Work::Pool => Kernel::Pool,
    }
}
