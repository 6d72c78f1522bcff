//! A stage as steps over a few buffers, planned once.

use std::mem;

use super::kernels::{self, Activation, Depthwise, Linear, Map, Norm, Window};
use super::simd::{Isa, Simd, dispatch};

/// What a step does. `x` is read; `y` is written, or changed where the step is *in place*.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    Copy,
    Gather(Window),
    /// In place where it adds to what is there.
    Linear {
        layer: Linear,
        onto: bool,
    },
    Depthwise(Depthwise),
    /// In place.
    Norm(Norm),
    /// In place: y += s x.
    Add(Option<Vec<f32>>),
    /// In place: y += b.
    Shift(Vec<f32>),
    /// In place.
    Activate(Activation),
    /// In place: x is a map that is so many times smaller.
    AddUpsampled {
        fine: Map,
        factors: (usize, usize),
    },
    Pool,
}

/// A buffer, and how many of its values an image takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) slot: usize,
    pub(crate) values: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) work: Work,
    /// None where the step only changes y.
    pub(crate) x: Option<Part>,
    pub(crate) y: Part,
}

/// Steps, and the buffers that they need.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) isa: Isa,
    pub(crate) steps: Vec<Step>,
    /// Values per image of each buffer.
    pub(crate) slots: Vec<usize>,
    pub(crate) inputs: Vec<Part>,
    pub(crate) outputs: Vec<Part>,
}

/// The buffers of a plan, used again and again.
#[derive(Clone, Debug, Default)]
pub(crate) struct Buffers(Vec<Vec<f32>>);

impl Buffers {
    /// As many as a plan has, and as large.
    fn fit(&mut self, plan: &Plan) {
        self.0.resize_with(plan.slots.len(), Vec::new);
        for (buffer, values) in self.0.iter_mut().zip(&plan.slots) {
            buffer.resize(*values, 0.0);
        }
    }
}

impl Plan {
    /// Runs the steps. What stands in `tensors` goes in, in the order of the inputs, and is handed back as it
    /// was; `outputs` get what comes out.
    pub(crate) fn run(&self, buffers: &mut Buffers, tensors: &mut [Vec<f32>], outputs: &mut [Vec<f32>]) {
        assert_eq!((tensors.len(), outputs.len()), (self.inputs.len(), self.outputs.len()));
        buffers.fit(self);
        // Buffers change hands instead of being copied.
        for (tensor, part) in tensors.iter_mut().zip(&self.inputs) {
            assert_eq!(
                tensor.len(),
                part.values,
                "a tensor is as long as it was when the stage was loaded"
            );
            mem::swap(tensor, &mut buffers.0[part.slot]);
        }
        run_steps(self.isa, &self.steps, &mut buffers.0);
        for (tensor, part) in tensors.iter_mut().zip(&self.inputs) {
            mem::swap(tensor, &mut buffers.0[part.slot]);
        }
        for (output, part) in outputs.iter_mut().zip(&self.outputs) {
            mem::swap(output, &mut buffers.0[part.slot]);
            output.truncate(part.values);
        }
    }
}

dispatch! {
    fn run_steps => run_all(steps: &[Step], buffers: &mut [Vec<f32>])
}

#[inline(always)]
unsafe fn run_all<S: Simd>(steps: &[Step], buffers: &mut [Vec<f32>]) {
    for step in steps {
        let mut buffer = mem::take(&mut buffers[step.y.slot]);
        let y = &mut buffer[..step.y.values];
        let x = step.x.map_or(&[][..], |x| &buffers[x.slot][..x.values]);
        // SAFETY: the caller has the instructions.
        unsafe {
            match &step.work {
                Work::Copy => y.copy_from_slice(x),
                Work::Gather(window) => kernels::gather(window, x, y),
                Work::Linear { layer, onto } => kernels::linear::<S>(layer, x, *onto, y),
                Work::Depthwise(layer) => kernels::depthwise::<S>(layer, x, y),
                Work::Norm(layer) => kernels::norm::<S>(layer, y),
                Work::Add(scale) => kernels::add(scale.as_deref(), x, y),
                Work::Shift(bias) => kernels::shift(bias, y),
                Work::Activate(activation) => kernels::activate_all::<S>(*activation, y),
                Work::AddUpsampled { fine, factors } => kernels::add_upsampled(*fine, *factors, x, y),
                Work::Pool => kernels::pool(x, y),
            }
        }
        buffers[step.y.slot] = buffer;
    }
}
