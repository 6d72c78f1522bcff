//! From operators to a plan: what one can take in is fused, and tensors are given buffers.

use super::arithmetic::{Activation, Depthwise, Map, Norm, Packed, Window};
use super::plan::{Kernel, Part, Plan, Step};
use super::simd::Isa;

/// A tensor of a draft.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Id(usize);

/// A linear layer: y = act(x W + b).
#[derive(Clone, Debug)]
pub struct Linear {
    /// K×N, row by row.
    pub weights: Vec<f32>,
    /// K.
    pub inputs: usize,
    /// N biases.
    pub bias: Vec<f32>,
    /// What is applied to the sums.
    pub activation: Activation,
}

/// What an operator does. Some read a tensor x and give a tensor y; others change a tensor y.
#[derive(Clone, Debug)]
pub enum Work {
    /// y = x.
    Copy,
    /// What a kernel sees at each place, laid out as a row of height × width × channels.
    Gather(Window),
    /// On every row.
    Linear(Linear),
    /// A convolution of each channel by itself.
    Depthwise(Depthwise),
    /// Changes every row.
    Norm(Norm),
    /// Changes y: y += s x, with s per channel where it is not 1.
    Add(Option<Vec<f32>>),
    /// Changes y: y += b, per channel.
    Shift(Vec<f32>),
    /// Changes y.
    Activate(Activation),
    /// Changes y, a fine map, by adding to each place that of x, a coarser map, that it lies in.
    AddUpsampled {
        /// The fine map.
        fine: Map,
        /// How many times the other's height and width it has.
        factors: (usize, usize),
    },
    /// The mean over all rows.
    Pool,
}

/// A step before buffers are given out: `onto` is the tensor that y takes over.
#[derive(Debug)]
struct Op {
    work: Work,
    x: Option<Id>,
    onto: Option<Id>,
    y: Id,
}

/// Operators in the order in which they are to run, and the tensors between them.
#[derive(Debug, Default)]
pub struct Draft {
    /// Values per image of every tensor.
    sizes: Vec<usize>,
    inputs: Vec<Id>,
    ops: Vec<Op>,
}

impl Draft {
    fn tensor(&mut self, values: usize) -> Id {
        self.sizes.push(values);
        Id(self.sizes.len() - 1)
    }

    /// A tensor that the plan reads, of so many values per image.
    pub fn input(&mut self, values: usize) -> Id {
        let id = self.tensor(values);
        self.inputs.push(id);
        id
    }

    /// An operator that makes a tensor of so many values per image.
    pub fn compute(&mut self, work: Work, x: Id, values: usize) -> Id {
        let y = self.tensor(values);
        let x = Some(x);
        self.ops.push(Op { work, x, onto: None, y });
        y
    }

    /// An operator that changes a tensor, reading another where it does. The tensor as it was can still be used.
    pub fn change(&mut self, work: Work, onto: Id, x: Option<Id>) -> Id {
        let y = self.tensor(self.sizes[onto.0]);
        let onto = Some(onto);
        self.ops.push(Op { work, x, onto, y });
        y
    }

    /// The plan that gives these tensors, for an instruction set.
    ///
    /// # Panics
    /// Where a tensor is not of this draft. Tensors of a size that an operator does not give show when the plan
    /// is run.
    #[must_use]
    pub fn plan(mut self, outputs: &[Id], isa: Isa) -> Plan {
        let mut outputs = outputs.to_vec();
        for place in 0..outputs.len() {
            let id = outputs[place];
            if self.inputs.contains(&id) || outputs[..place].contains(&id) {
                // What is passed on as it is, or given twice: everything that is given has memory of its own.
                outputs[place] = self.compute(Work::Copy, id, self.sizes[id.0]);
            }
        }
        self.fuse(&outputs);
        self.give_buffers(&outputs, isa)
    }

    /// Takes into a linear layer or a convolution what is done to its result at once: a bias, an activation, and
    /// its addition to another tensor.
    fn fuse(&mut self, outputs: &[Id]) {
        let mut at = 0;
        while at < self.ops.len() {
            if let Some(user) = self.only_user(at, outputs)
                && self.take_in(at, user)
            {
                self.ops.remove(at.min(user));
                // The op has moved to its user's place, or the user has gone: look from here again.
                continue;
            }
            at += 1;
        }
    }

    /// The only op that reads what an op gives, if there is just one and it is no output.
    fn only_user(&self, op: usize, outputs: &[Id]) -> Option<usize> {
        let y = self.ops[op].y;
        if outputs.contains(&y) {
            return None;
        }
        let mut users = (0..self.ops.len()).filter(|i| self.ops[*i].x == Some(y) || self.ops[*i].onto == Some(y));
        let user = users.next()?;
        users.next().is_none().then_some(user)
    }

    /// Whether an op could take in the one that uses its result. It then stands in the place of that one.
    fn take_in(&mut self, op: usize, user: usize) -> bool {
        let (head, tail) = self.ops.split_at_mut(user);
        let (op, user) = (&mut head[op], &mut tail[0]);
        let alone = op.onto.is_none();
        let taken = match (&mut op.work, &user.work) {
            (Work::Linear(layer), Work::Shift(shift)) if alone && layer.activation == Activation::None => {
                layer.bias.iter_mut().zip(shift).for_each(|(b, s)| *b += *s);
                true
            }
            (Work::Linear(layer), Work::Activate(wanted)) if alone && layer.activation == Activation::None => {
                layer.activation = *wanted;
                true
            }
            (Work::Depthwise(layer), Work::Activate(wanted)) if layer.activation == Activation::None => {
                layer.activation = *wanted;
                true
            }
            (Work::Linear(_), Work::Add(None)) if alone && user.x != user.onto => {
                // The other summand is what is added to, whichever the graph named first.
                let other = if user.x == Some(op.y) { user.onto } else { user.x };
                op.onto = other;
                true
            }
            _ => false,
        };
        if taken {
            op.y = user.y;
            std::mem::swap(op, user);
        }
        taken
    }

    /// Gives every tensor a buffer; one that is not needed any more serves another.
    fn give_buffers(self, outputs: &[Id], isa: Isa) -> Plan {
        const FOREVER: usize = usize::MAX;
        let mut last_use = vec![0; self.sizes.len()];
        for (at, op) in self.ops.iter().enumerate() {
            for id in op.x.iter().chain(&op.onto) {
                last_use[id.0] = at;
            }
        }
        // Inputs are handed back as they were, outputs are taken at the end.
        for id in self.inputs.iter().chain(outputs) {
            last_use[id.0] = FOREVER;
        }
        let mut slots: Vec<usize> = Vec::new();
        let mut free: Vec<usize> = Vec::new();
        let mut slot_of = vec![None; self.sizes.len()];
        let mut take = |values: usize, free: &mut Vec<usize>| {
            let fits = |slot: &usize, slots: &[usize]| slots[*slot] >= values;
            let best = (0..free.len())
                .filter(|i| fits(&free[*i], &slots))
                .min_by_key(|i| slots[free[*i]])
                .or_else(|| (0..free.len()).max_by_key(|i| slots[free[*i]]));
            let slot = match best {
                Some(i) => free.swap_remove(i),
                None => {
                    slots.push(0);
                    slots.len() - 1
                }
            };
            slots[slot] = slots[slot].max(values);
            slot
        };
        for id in &self.inputs {
            // Of its own: it changes hands with the caller's.
            slot_of[id.0] = Some(take(self.sizes[id.0], &mut Vec::new()));
        }
        let mut steps = Vec::with_capacity(self.ops.len());
        for (at, op) in self.ops.into_iter().enumerate() {
            let part = |id: Id, slot_of: &[Option<usize>]| Part {
                slot: slot_of[id.0].unwrap_or_default(),
                values: self.sizes[id.0],
            };
            match op.onto {
                Some(onto) if last_use[onto.0] == at && op.x != Some(onto) => {
                    slot_of[op.y.0] = slot_of[onto.0];
                }
                onto => {
                    slot_of[op.y.0] = Some(take(self.sizes[op.y.0], &mut free));
                    if let Some(onto) = onto {
                        steps.push(Step {
                            kernel: Kernel::Copy,
                            x: Some(part(onto, &slot_of)),
                            y: part(op.y, &slot_of),
                        });
                        if last_use[onto.0] == at {
                            free.extend(slot_of[onto.0]);
                        }
                    }
                }
            }
            let kernel = match op.work {
                Work::Copy => Kernel::Copy,
                Work::Gather(window) => Kernel::Gather(window),
                Work::Linear(Linear {
                    weights,
                    inputs,
                    bias,
                    activation,
                }) => Kernel::Linear {
                    layer: Packed::new(&weights, inputs, &bias, activation, isa.panel()),
                    onto: op.onto.is_some(),
                },
                Work::Depthwise(layer) => Kernel::Depthwise(layer),
                Work::Norm(layer) => Kernel::Norm(layer),
                Work::Add(scale) => Kernel::Add(scale),
                Work::Shift(bias) => Kernel::Shift(bias),
                Work::Activate(activation) => Kernel::Activate(activation),
                Work::AddUpsampled { fine, factors } => Kernel::AddUpsampled { fine, factors },
                Work::Pool => Kernel::Pool,
            };
            steps.push(Step {
                kernel,
                x: op.x.map(|x| part(x, &slot_of)),
                y: part(op.y, &slot_of),
            });
            if let Some(x) = op.x.filter(|x| last_use[x.0] == at && op.onto != Some(*x)) {
                free.extend(slot_of[x.0]);
            }
        }
        let parts = |ids: &[Id]| {
            ids.iter()
                .map(|id| Part {
                    slot: slot_of[id.0].unwrap_or_default(),
                    values: self.sizes[id.0],
                })
                .collect()
        };
        Plan {
            isa,
            steps,
            inputs: parts(&self.inputs),
            outputs: parts(outputs),
            slots,
        }
    }
}
