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
    /// As many as a plan has, and large enough for so many images.
    fn fit(&mut self, plan: &Plan, images: usize) {
        self.0.resize_with(plan.slots.len(), Vec::new);
        for (buffer, values) in self.0.iter_mut().zip(&plan.slots) {
            if buffer.len() < values * images {
                buffer.resize(values * images, 0.0);
            }
        }
    }
}

/// Tensors that go into a plan and come out of it, of one image.
pub(crate) trait Tensors {
    /// What is read, in the order of the plan's inputs; it is handed back as it was.
    fn inputs(&mut self) -> &mut [Vec<f32>];
    /// What is given, as many as the plan has outputs; of any length before.
    fn outputs(&mut self) -> &mut [Vec<f32>];
}

impl Plan {
    /// Runs the steps on one image, or on several at a time.
    pub(crate) fn run<T: Tensors>(&self, buffers: &mut Buffers, images: &mut [&mut T]) {
        for image in &mut *images {
            let fits = |(tensor, part): (&Vec<f32>, &Part)| tensor.len() == part.values;
            assert!(
                image.inputs().iter().zip(&self.inputs).all(fits),
                "tensors are as long as planned"
            );
            assert_eq!(
                (image.inputs().len(), image.outputs().len()),
                (self.inputs.len(), self.outputs.len())
            );
        }
        buffers.fit(self, images.len());
        let buffers = &mut buffers.0;
        if let [image] = images {
            // Buffers change hands instead of being copied.
            for (tensor, part) in image.inputs().iter_mut().zip(&self.inputs) {
                mem::swap(tensor, &mut buffers[part.slot]);
            }
            run_steps(self.isa, &self.steps, 1, buffers);
            for (tensor, part) in image.inputs().iter_mut().zip(&self.inputs) {
                mem::swap(tensor, &mut buffers[part.slot]);
            }
            for (output, part) in image.outputs().iter_mut().zip(&self.outputs) {
                mem::swap(output, &mut buffers[part.slot]);
                output.truncate(part.values);
            }
            return;
        }
        for (i, image) in images.iter_mut().enumerate() {
            for (tensor, part) in image.inputs().iter().zip(&self.inputs) {
                buffers[part.slot][i * part.values..][..part.values].copy_from_slice(tensor);
            }
        }
        run_steps(self.isa, &self.steps, images.len(), buffers);
        for (i, image) in images.iter_mut().enumerate() {
            for (output, part) in image.outputs().iter_mut().zip(&self.outputs) {
                output.clear();
                output.extend_from_slice(&buffers[part.slot][i * part.values..][..part.values]);
            }
        }
    }
}

dispatch! {
    fn run_steps => run_all(steps: &[Step], images: usize, buffers: &mut [Vec<f32>])
}

#[inline(always)]
unsafe fn run_all<S: Simd>(steps: &[Step], images: usize, buffers: &mut [Vec<f32>]) {
    for step in steps {
        let mut buffer = mem::take(&mut buffers[step.y.slot]);
        let y = &mut buffer[..step.y.values * images];
        let (x, x_values) = match step.x {
            Some(x) => (&buffers[x.slot][..x.values * images], x.values),
            None => (&[][..], 1),
        };
        // Images lie one behind the other: for what works row by row they are one with more rows.
        let each = y.chunks_exact_mut(step.y.values).zip(x.chunks_exact(x_values));
        // SAFETY: the caller has the instructions.
        unsafe {
            match &step.work {
                Work::Copy => y.copy_from_slice(x),
                Work::Linear { layer, onto } => kernels::linear::<S>(layer, x, *onto, y),
                Work::Norm(layer) => kernels::norm::<S>(layer, y),
                Work::Add(scale) => kernels::add(scale.as_deref(), x, y),
                Work::Shift(bias) => kernels::shift(bias, y),
                Work::Activate(activation) => kernels::activate_all::<S>(*activation, y),
                Work::Gather(window) => {
                    for (y, x) in each {
                        kernels::gather(window, x, y);
                    }
                }
                Work::Depthwise(layer) => {
                    for (y, x) in each {
                        kernels::depthwise::<S>(layer, x, y);
                    }
                }
                Work::AddUpsampled { fine, factors } => {
                    for (y, x) in each {
                        kernels::add_upsampled(*fine, *factors, x, y);
                    }
                }
                Work::Pool => {
                    for (y, x) in each {
                        kernels::pool(x, y);
                    }
                }
            }
        }
        buffers[step.y.slot] = buffer;
    }
}
