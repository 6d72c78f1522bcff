//! Operators as they are drawn, and what one can take in.

use super::arithmetic::{Activation, Depthwise, Map, Norm, Window};
use super::layout::Layout;
use super::plan::Plan;
use super::simd::Isa;

/// A tensor of a draft.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Id(pub(crate) usize);

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
pub(crate) struct Op {
    pub(crate) work: Work,
    pub(crate) x: Option<Id>,
    pub(crate) onto: Option<Id>,
    pub(crate) y: Id,
}

impl Op {
    /// The tensors that it reads.
    pub(crate) fn reads(&self) -> impl Iterator<Item = Id> {
        self.x.into_iter().chain(self.onto)
    }

    /// All its tensors.
    pub(crate) fn tensors(&self) -> impl Iterator<Item = Id> {
        self.reads().chain([self.y])
    }
}

/// Operators in the order in which they are to run, and the tensors between them.
#[derive(Debug, Default)]
pub struct Draft {
    /// Values per image of every tensor.
    pub(crate) sizes: Vec<usize>,
    pub(crate) inputs: Vec<Id>,
    pub(crate) ops: Vec<Op>,
}

impl Draft {
    pub(crate) fn tensor(&mut self, values: usize) -> Id {
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
        Layout::new(self, outputs).plan(isa)
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
}
