//! Steps over a few buffers, planned once.

use std::mem;
use std::ops::Range;

use super::arithmetic::{self, Activation, Depthwise, Map, Norm, Packed, Shared, Window};
use super::pool::{MAX_PARTS, Pool, Turn};
use super::simd::{Isa, Simd, dispatch};

/// What a step does: as [`Work`](super::Work), ready to run.
#[derive(Clone, Debug)]
pub(crate) enum Kernel {
    Copy,
    Gather(Window),
    /// In place where it adds to what is there.
    Linear {
        layer: Packed,
        onto: bool,
    },
    Depthwise(Depthwise),
    Norm(Norm),
    Add(Option<Vec<f32>>),
    Shift(Vec<f32>),
    Activate(Activation),
    AddUpsampled {
        fine: Map,
        factors: (usize, usize),
    },
    Pool,
}

/// Vector operations that a part is worth at least: a microsecond or so, several times what it takes to hand it
/// over.
const GRAIN: usize = 4096;
/// Parts per thread, so that nobody waits long for the slowest.
const PARTS: usize = 4;

/// Values that buffers for several images may have: about what the second cache holds. Beyond, what is saved by
/// reading weights once is lost by reading maps from further away.
const TOGETHER: usize = 1 << 18;

/// How a step can be cut.
struct Extent {
    /// What no cut goes through: rows, lines, panels or images.
    units: usize,
    /// Vector operations, roughly.
    cost: usize,
}

impl Kernel {
    fn name(&self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Gather(_) => "gather",
            Self::Linear { .. } => "linear",
            Self::Depthwise(_) => "depthwise",
            Self::Norm(_) => "norm",
            Self::Add(_) => "add",
            Self::Shift(_) => "shift",
            Self::Activate(_) => "activate",
            Self::AddUpsampled { .. } => "add up-sampled",
            Self::Pool => "pool",
        }
    }

    /// Values of x and y per image where they are not free: a row's for what works row by row.
    fn values(&self) -> (Option<usize>, usize) {
        match self {
            Self::Copy => (Some(1), 1),
            Self::Gather(window) => {
                let row = window.taps() * window.from.channels;
                (Some(window.from.values()), window.to.0 * window.to.1 * row)
            }
            Self::Linear { layer, .. } => (Some(layer.inputs), layer.outputs),
            Self::Depthwise(layer) => {
                let window = &layer.window;
                (
                    Some(window.from.values()),
                    window.to.0 * window.to.1 * window.from.channels,
                )
            }
            Self::Norm(layer) => (None, layer.channels),
            Self::Add(scale) => {
                let row = scale.as_ref().map_or(1, Vec::len);
                (Some(row), row)
            }
            Self::Shift(bias) => (None, bias.len()),
            Self::Activate(_) => (None, 1),
            Self::AddUpsampled { fine, factors } => {
                let coarse = fine.values() / (factors.0 * factors.1);
                (Some(coarse), fine.values())
            }
            // Any number of rows of as many values as there are means.
            Self::Pool => (None, 1),
        }
    }

    /// Whether tensors of these sizes can be what it reads and gives.
    fn fits(&self, x: usize, y: usize) -> bool {
        let (of_x, of_y) = self.values();
        let times = y.checked_div(of_y);
        times.is_some_and(|times| times * of_y == y && of_x.is_none_or(|of_x| times * of_x == x))
            && (!matches!(self, Self::Pool) || y > 0 && x.is_multiple_of(y))
    }

    fn extent(&self, images: usize, x: usize, y: usize, isa: Isa) -> Extent {
        let lanes = isa.lanes();
        let (units, cost) = match self {
            Self::Copy | Self::Activate(_) => (y.div_ceil(lanes), 4 * y),
            Self::Gather(window) => (images * window.to.0, 2 * y),
            Self::Linear { layer, .. } => {
                let rows = y / layer.outputs;
                let units = if by_panels(layer, rows) {
                    layer.outputs.div_ceil(isa.panel())
                } else {
                    rows.div_ceil(isa.tile_rows())
                };
                (units, x * layer.outputs)
            }
            Self::Depthwise(layer) => (images * layer.window.to.0, layer.window.taps() * y),
            Self::Norm(layer) => (y / layer.channels, 8 * y),
            Self::Add(scale) => (y / scale.as_ref().map_or(1, Vec::len), 2 * y),
            Self::Shift(bias) => (y / bias.len(), 2 * y),
            Self::AddUpsampled { fine, .. } => (images * fine.height, 2 * y),
            Self::Pool => (images, x),
        };
        Extent {
            units,
            cost: cost / lanes,
        }
    }
}

/// Whether a linear layer is cut by the columns of its result. With few rows the weights are what is streamed:
/// cut by rows, every thread would stream all of them.
fn by_panels(layer: &Packed, rows: usize) -> bool {
    2 * rows < layer.outputs
}

/// A buffer, and how many of its values an image takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Part {
    pub(crate) slot: usize,
    pub(crate) values: usize,
}

#[derive(Clone, Debug)]
pub(crate) struct Step {
    pub(crate) kernel: Kernel,
    /// None where the step only changes y.
    pub(crate) x: Option<Part>,
    pub(crate) y: Part,
}

/// A buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    /// Values per image.
    pub(crate) values: usize,
    /// Whether it has room for all images that run at a time, or for one after another.
    pub(crate) joint: bool,
}

/// Steps in a row that are done for all images at once, or for one after another.
#[derive(Debug)]
pub(crate) struct Segment {
    /// All buffers of its steps are joint.
    pub(crate) together: bool,
    pub(crate) steps: Vec<Step>,
}

/// Steps, and the buffers that they need.
#[derive(Debug)]
pub struct Plan {
    pub(crate) isa: Isa,
    pub(crate) segments: Vec<Segment>,
    pub(crate) slots: Vec<Slot>,
    /// In buffers that nothing else is in. One that is not joint is swapped with the image's own, and so is an
    /// output's.
    pub(crate) inputs: Vec<Part>,
    /// In buffers as long as they are, which only what they are made of shares.
    pub(crate) outputs: Vec<Part>,
}

/// The buffers of a plan, used again and again.
#[derive(Clone, Debug, Default)]
pub struct Buffers(Vec<Vec<f32>>);

impl Buffers {
    /// As many as a plan has, and large enough for so many images.
    fn fit(&mut self, plan: &Plan, images: usize) {
        self.0.resize_with(plan.slots.len(), Vec::new);
        for (buffer, slot) in self.0.iter_mut().zip(&plan.slots) {
            grow(buffer, slot.values * if slot.joint { images } else { 1 });
        }
    }
}

fn grow(buffer: &mut Vec<f32>, values: usize) {
    if buffer.len() < values {
        buffer.resize(values, 0.0);
    }
}

/// Tensors that go into a plan and come out of it, of one image.
pub trait Tensors {
    /// What is read, in the order of the plan's inputs; it is handed back as it was.
    fn inputs(&mut self) -> &mut [Vec<f32>];
    /// What is given, as many as the plan has outputs; of any length before.
    fn outputs(&mut self) -> &mut [Vec<f32>];
}

impl Plan {
    /// What each step does, in one word or two.
    pub fn steps(&self) -> impl Iterator<Item = &'static str> {
        let steps = self.segments.iter().flat_map(|segment| &segment.steps);
        steps.map(|step| step.kernel.name())
    }

    /// Runs the steps on one image, or on several: segment by segment, all of them at once or one after another.
    ///
    /// # Panics
    /// Where tensors are not as many and as long as drafted, and where the draft was wrong about what an
    /// operator gives. The buffers, and what is held by the images, are then of no use any more.
    pub fn run<T: Tensors>(&self, buffers: &mut Buffers, images: &mut [&mut T], pool: &Pool) {
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
        let joint = self.slots.iter().filter(|slot| slot.joint).map(|slot| slot.values);
        let most = TOGETHER / joint.sum::<usize>().max(1);
        let mut turn = pool.turn();
        for images in images.chunks_mut(most.max(1)) {
            buffers.fit(self, images.len());
            if let [image] = images {
                self.run_alone(&mut buffers.0, *image, &mut turn);
            } else {
                self.run_together(&mut buffers.0, images, &mut turn);
            }
        }
    }

    /// No tensor is copied: all buffers have room for the one image.
    fn run_alone<T: Tensors>(&self, buffers: &mut [Vec<f32>], image: &mut T, turn: &mut Turn<'_>) {
        self.exchange(buffers, image, |_| true);
        for step in self.segments.iter().flat_map(|segment| &segment.steps) {
            self.run_step(step, 0..1, buffers, turn);
        }
        self.exchange(buffers, image, |_| true);
        for (output, part) in image.outputs().iter_mut().zip(&self.outputs) {
            output.truncate(part.values);
        }
    }

    fn run_together<T: Tensors>(&self, buffers: &mut [Vec<f32>], images: &mut [&mut T], turn: &mut Turn<'_>) {
        let joint = |part: &Part| self.slots[part.slot].joint;
        let of = |i: usize, part: &Part| i * part.values..(i + 1) * part.values;
        for (i, image) in images.iter_mut().enumerate() {
            let inputs = image.inputs().iter().zip(&self.inputs);
            for (tensor, part) in inputs.filter(|(_, part)| joint(part)) {
                buffers[part.slot][of(i, part)].copy_from_slice(tensor);
            }
        }
        for segment in &self.segments {
            if segment.together {
                for step in &segment.steps {
                    self.run_step(step, 0..images.len(), buffers, turn);
                }
                continue;
            }
            for (i, image) in images.iter_mut().enumerate() {
                self.exchange(buffers, *image, |part| !joint(part));
                for step in &segment.steps {
                    self.run_step(step, i..i + 1, buffers, turn);
                }
                self.exchange(buffers, *image, |part| !joint(part));
            }
        }
        for (i, image) in images.iter_mut().enumerate() {
            for (output, part) in image.outputs().iter_mut().zip(&self.outputs) {
                if joint(part) {
                    output.clear();
                    output.extend_from_slice(&buffers[part.slot][of(i, part)]);
                } else {
                    output.truncate(part.values);
                }
            }
        }
    }

    /// Swaps buffers of inputs and outputs with an image's own: nothing is copied.
    fn exchange<T: Tensors>(&self, buffers: &mut [Vec<f32>], image: &mut T, which: impl Fn(&Part) -> bool) {
        let inputs = image.inputs().iter_mut().zip(&self.inputs);
        for (tensor, part) in inputs.filter(|(_, part)| which(part)) {
            mem::swap(tensor, &mut buffers[part.slot]);
        }
        let outputs = image.outputs().iter_mut().zip(&self.outputs);
        for (tensor, part) in outputs.filter(|(_, part)| which(part)) {
            let buffer = &mut buffers[part.slot];
            mem::swap(tensor, buffer);
            grow(buffer, self.slots[part.slot].values);
        }
    }

    /// Runs a step on some of the images that run at a time; on one, where a buffer has room for no more.
    fn run_step(&self, step: &Step, images: Range<usize>, buffers: &mut [Vec<f32>], turn: &mut Turn<'_>) {
        let count = images.len();
        let place = |part: Part| {
            let first = if self.slots[part.slot].joint { images.start } else { 0 };
            first * part.values..(first + count) * part.values
        };
        // Taken out, so that no slot can be read and written at a time.
        let mut buffer = mem::take(&mut buffers[step.y.slot]);
        let y = &mut buffer[place(step.y)];
        let x = match step.x {
            Some(x) => &buffers[x.slot][place(x)],
            None => &[],
        };
        let kernel = &step.kernel;
        assert!(
            kernel.fits(step.x.map_or(0, |x| x.values), step.y.values),
            "a {} gives what was drafted",
            kernel.name()
        );
        let Extent { units, cost } = kernel.extent(count, x.len(), y.len(), self.isa);
        let most = (PARTS * turn.threads()).min(MAX_PARTS);
        let parts = match turn.threads() {
            1 => 1,
            _ => (cost / GRAIN).min(units).min(most).max(1),
        };
        let y = Shared::new(y);
        turn.each(parts, &|part| {
            run_part(
                self.isa,
                kernel,
                part * units / parts..(part + 1) * units / parts,
                count,
                x,
                y,
            );
        });
        buffers[step.y.slot] = buffer;
    }
}

dispatch! {
    fn run_part => run(kernel: &Kernel, units: Range<usize>, images: usize, x: &[f32], y: Shared<'_>)
}

/// Does these units of a step.
///
/// # Safety
/// The instructions are enabled; nobody else does the same units.
#[inline(always)]
unsafe fn run<S: Simd>(kernel: &Kernel, units: Range<usize>, images: usize, x: &[f32], y: Shared<'_>) {
    // What every row, line or image has of a tensor.
    let of = |unit: usize, values: usize| units.start * unit..(units.end * unit).min(values);
    // SAFETY: the caller has the instructions; units do not overlap.
    unsafe {
        match kernel {
            Kernel::Copy => {
                let range = of(S::LANES, y.len());
                y.part(range.clone()).copy_from_slice(&x[range]);
            }
            Kernel::Activate(activation) => {
                arithmetic::activate_all::<S>(*activation, y.part(of(S::LANES, y.len())));
            }
            Kernel::Linear { layer, onto } => {
                let rows = y.len() / layer.outputs;
                let panels = layer.outputs.div_ceil(2 * S::LANES);
                if by_panels(layer, rows) {
                    arithmetic::linear::<S>(layer, 0..rows, units, x, *onto, y);
                } else {
                    arithmetic::linear::<S>(layer, of(S::TILE_ROWS, rows), 0..panels, x, *onto, y);
                }
            }
            Kernel::Norm(layer) => arithmetic::norm::<S>(layer, y.part(of(layer.channels, y.len()))),
            Kernel::Add(scale) => {
                let range = of(scale.as_ref().map_or(1, Vec::len), y.len());
                arithmetic::add(scale.as_deref(), &x[range.clone()], y.part(range));
            }
            Kernel::Shift(bias) => arithmetic::shift(bias, y.part(of(bias.len(), y.len()))),
            Kernel::Gather(window) => {
                let line = window.to.1 * window.taps() * window.from.channels;
                arithmetic::gather::<S>(window, units.clone(), x, y.part(of(line, y.len())));
            }
            Kernel::Depthwise(layer) => {
                let line = layer.window.to.1 * layer.window.from.channels;
                arithmetic::depthwise::<S>(layer, units.clone(), x, y.part(of(line, y.len())));
            }
            Kernel::AddUpsampled { fine, factors } => {
                let part = y.part(of(fine.width * fine.channels, y.len()));
                arithmetic::add_upsampled(*fine, *factors, units.clone(), x, part);
            }
            Kernel::Pool => {
                let (from, to) = (x.len() / images, y.len() / images);
                for image in units {
                    arithmetic::pool(&x[image * from..][..from], y.part(image * to..(image + 1) * to));
                }
            }
        }
    }
}
