//! The arithmetic of a stage, row by row: a row holds the channels of one place of one image.

use super::simd::Simd;

/// What is applied to the result of a linear layer or a convolution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Activation {
    None,
    /// The exact one, through the error function.
    Gelu,
    /// Kept within bounds: ReLU is 0 to infinity.
    Clip(f32, f32),
}

/// Weights K×N in panels of [`super::simd::Isa::panel`] columns, one after another; in a panel row by row. The
/// last is filled up with zeros.
#[derive(Clone, Debug)]
pub(crate) enum Panels {
    /// Where every weight is a half, as in our packages: half of the memory to stream.
    Half(Vec<u16>),
    Full(Vec<f32>),
}

/// A linear layer: y = act(x W + b).
#[derive(Clone, Debug)]
pub(crate) struct Linear {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    pub(crate) panels: Panels,
    /// As long as the panels are wide.
    pub(crate) bias: Vec<f32>,
    pub(crate) activation: Activation,
}

impl Linear {
    /// From K×N weights row by row, and N biases, packed for panels of so many columns.
    pub(crate) fn pack(weights: &[f32], inputs: usize, bias: &[f32], panel: usize) -> Self {
        let outputs = bias.len();
        let mut packed = Vec::with_capacity(outputs.next_multiple_of(panel) * inputs);
        for first in (0..outputs).step_by(panel) {
            for row in weights.chunks_exact(outputs) {
                let end = (first + panel).min(outputs);
                packed.extend_from_slice(&row[first..end]);
                packed.resize(packed.len() + first + panel - end, 0.0);
            }
        }
        let mut padded = bias.to_vec();
        padded.resize(outputs.next_multiple_of(panel), 0.0);
        let halves: Vec<half::f16> = packed.iter().map(|w| half::f16::from_f32(*w)).collect();
        let exact = halves.iter().zip(&packed).all(|(half, w)| half.to_f32() == *w);
        let panels = if exact {
            Panels::Half(halves.iter().map(|half| half.to_bits()).collect())
        } else {
            Panels::Full(packed)
        };
        Self {
            inputs,
            outputs,
            panels,
            bias: padded,
            activation: Activation::None,
        }
    }
}

/// y = act(x W + b) for rows of x; `onto` what y holds, it is added.
#[inline(always)]
pub(super) unsafe fn linear<S: Simd>(layer: &Linear, x: &[f32], onto: bool, y: &mut [f32]) {
    let rows = x.len() / layer.inputs;
    assert_eq!((x.len(), y.len()), (rows * layer.inputs, rows * layer.outputs));
    match &layer.panels {
        // SAFETY: the caller has the instructions; lengths were checked above.
        Panels::Half(panels) => unsafe { product::<S, u16>(layer, panels, x, onto, y) },
        // SAFETY: as above.
        Panels::Full(panels) => unsafe { product::<S, f32>(layer, panels, x, onto, y) },
    }
}

/// A number that weights are kept as.
trait Weight: Copy {
    unsafe fn load<S: Simd>(at: *const Self) -> S::V;
}

impl Weight for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(at: *const f32) -> S::V {
        // SAFETY: the caller's.
        unsafe { S::load(at) }
    }
}

impl Weight for u16 {
    #[inline(always)]
    unsafe fn load<S: Simd>(at: *const u16) -> S::V {
        // SAFETY: the caller's.
        unsafe { S::load_half(at) }
    }
}

#[inline(always)]
unsafe fn product<S: Simd, W: Weight>(layer: &Linear, panels: &[W], x: &[f32], onto: bool, y: &mut [f32]) {
    let (k, n, panel) = (layer.inputs, layer.outputs, 2 * S::LANES);
    let rows = x.len() / k;
    // Panels outside, rows inside: a panel stays in the nearest cache while all rows pass.
    for ((weights, bias), first) in panels
        .chunks_exact(k * panel)
        .zip(layer.bias.chunks_exact(panel))
        .zip((0..n).step_by(panel))
    {
        let mut row = 0;
        while row < rows {
            let tile = Tile {
                layer,
                weights: weights.as_ptr(),
                bias: bias.as_ptr(),
                row,
                first,
            };
            let left = rows - row;
            // SAFETY: the tile's rows and columns are inside of the matrices.
            unsafe {
                row += match left.min(S::TILE_ROWS) {
                    8.. => tile.run::<S, 8>(x, onto, y),
                    6 | 7 => tile.run::<S, 6>(x, onto, y),
                    4 | 5 => tile.run::<S, 4>(x, onto, y),
                    3 => tile.run::<S, 3>(x, onto, y),
                    2 => tile.run::<S, 2>(x, onto, y),
                    _ => tile.run::<S, 1>(x, onto, y),
                };
            }
        }
    }
}

/// A part of a product that is kept in registers: some rows, and the columns of a panel.
struct Tile<'a, W> {
    layer: &'a Linear,
    weights: *const W,
    bias: *const f32,
    row: usize,
    first: usize,
}

impl<W: Weight> Tile<'_, W> {
    /// Gives the number of rows.
    #[inline(always)]
    unsafe fn run<S: Simd, const ROWS: usize>(&self, x: &[f32], onto: bool, y: &mut [f32]) -> usize {
        let (k, n, lanes) = (self.layer.inputs, self.layer.outputs, S::LANES);
        let columns = n - self.first;
        // SAFETY: rows and columns are inside of the matrices, and panels are as wide as two vectors.
        unsafe {
            let x = x.as_ptr().add(self.row * k);
            let bias = [S::load(self.bias), S::load(self.bias.add(lanes))];
            let mut sums = [bias; ROWS];
            let mut weights = self.weights;
            for i in 0..k {
                let w = [W::load::<S>(weights), W::load::<S>(weights.add(lanes))];
                weights = weights.add(2 * lanes);
                for (r, sum) in sums.iter_mut().enumerate() {
                    let value = S::splat(*x.add(r * k + i));
                    *sum = [S::fma(value, w[0], sum[0]), S::fma(value, w[1], sum[1])];
                }
            }
            for (r, sum) in sums.iter().enumerate() {
                let y = &mut y[(self.row + r) * n + self.first..];
                // No closures in here: one that is not inlined would call every instruction.
                let mut sum = [
                    activate::<S>(self.layer.activation, sum[0]),
                    activate::<S>(self.layer.activation, sum[1]),
                ];
                if columns >= 2 * lanes {
                    let y = y.as_mut_ptr();
                    if onto {
                        sum = [S::add(sum[0], S::load(y)), S::add(sum[1], S::load(y.add(lanes)))];
                    }
                    S::store(y, sum[0]);
                    S::store(y.add(lanes), sum[1]);
                } else {
                    let mut values = [0.0; 32];
                    S::store(values.as_mut_ptr(), sum[0]);
                    S::store(values.as_mut_ptr().add(lanes), sum[1]);
                    for (y, value) in y[..columns].iter_mut().zip(values) {
                        *y = if onto { *y + value } else { value };
                    }
                }
            }
        }
        ROWS
    }
}

#[inline(always)]
unsafe fn activate<S: Simd>(activation: Activation, x: S::V) -> S::V {
    // SAFETY: the caller has the instructions.
    unsafe {
        match activation {
            Activation::None => x,
            Activation::Clip(low, high) => S::min(S::max(x, S::splat(low)), S::splat(high)),
            Activation::Gelu => gelu::<S>(x),
        }
    }
}

/// x Φ(x), with erf as a quotient of polynomials (coefficients: Eigen's, of the Cephes family), to 3e-7.
#[inline(always)]
unsafe fn gelu<S: Simd>(x: S::V) -> S::V {
    const ABOVE: [f32; 7] = [
        -2.726_142_3e-10,
        2.770_681_4e-8,
        -2.101_024e-6,
        -5.692_506_4e-5,
        -7.349_906_4e-4,
        -2.954_6e-3,
        -1.609_603_4e-2,
    ];
    const BELOW: [f32; 5] = [
        -1.456_607_2e-5,
        -2.133_740_5e-4,
        -1.682_827e-3,
        -7.373_329e-3,
        -1.426_473_9e-2,
    ];
    // SAFETY: the caller has the instructions.
    unsafe {
        let z = S::mul(x, S::splat(std::f32::consts::FRAC_1_SQRT_2));
        // Beyond 4 it is 1 to the last bit.
        let z = S::min(S::max(z, S::splat(-4.0)), S::splat(4.0));
        let square = S::mul(z, z);
        let mut above = S::splat(ABOVE[0]);
        for c in &ABOVE[1..] {
            above = S::fma(above, square, S::splat(*c));
        }
        let mut below = S::splat(BELOW[0]);
        for c in &BELOW[1..] {
            below = S::fma(below, square, S::splat(*c));
        }
        let erf = S::div(S::mul(z, above), below);
        let half = S::mul(x, S::splat(0.5));
        S::fma(half, erf, half)
    }
}

/// Applies an activation in place.
#[inline(always)]
pub(super) unsafe fn activate_all<S: Simd>(activation: Activation, y: &mut [f32]) {
    let (whole, rest) = y.split_at_mut(y.len() / S::LANES * S::LANES);
    // SAFETY: the caller has the instructions; chunks are as long as a vector.
    unsafe {
        for chunk in whole.chunks_exact_mut(S::LANES) {
            let v = activate::<S>(activation, S::load(chunk.as_ptr()));
            S::store(chunk.as_mut_ptr(), v);
        }
        if !rest.is_empty() {
            let mut values = [0.0; 16];
            values[..rest.len()].copy_from_slice(rest);
            let v = activate::<S>(activation, S::load(values.as_ptr()));
            S::store(values.as_mut_ptr(), v);
            rest.copy_from_slice(&values[..rest.len()]);
        }
    }
}

/// Height, width and channels of an image's map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Map {
    pub(crate) height: usize,
    pub(crate) width: usize,
    pub(crate) channels: usize,
}

impl Map {
    pub(crate) fn rows(self) -> usize {
        self.height * self.width
    }

    pub(crate) fn values(self) -> usize {
        self.rows() * self.channels
    }
}

/// How a kernel moves over a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) from: Map,
    /// Height and width of the result.
    pub(crate) to: (usize, usize),
    pub(crate) kernel: (usize, usize),
    pub(crate) stride: (usize, usize),
    /// Zeros above and to the left.
    pub(crate) padding: (usize, usize),
}

impl Window {
    /// The places of a row of the kernel that lie on the map when it stands at a place of the result: from
    /// where, how many are cut off in front, and how many there are.
    #[inline(always)]
    fn span(at: usize, stride: usize, padding: usize, kernel: usize, size: usize) -> (usize, usize, usize) {
        let begin = at * stride;
        let cut = padding.saturating_sub(begin).min(kernel);
        // A kernel may stand wholly on its padding, before the map or behind it.
        let first = (begin + cut).saturating_sub(padding).min(size);
        (first, cut, (kernel - cut).min(size - first))
    }

    #[inline(always)]
    fn vertical(&self, row: usize) -> (usize, usize, usize) {
        Self::span(row, self.stride.0, self.padding.0, self.kernel.0, self.from.height)
    }

    #[inline(always)]
    fn horizontal(&self, column: usize) -> (usize, usize, usize) {
        Self::span(column, self.stride.1, self.padding.1, self.kernel.1, self.from.width)
    }

    pub(crate) fn taps(&self) -> usize {
        self.kernel.0 * self.kernel.1
    }
}

/// Lays out what a kernel sees at each place of an image as a row: kernel height × width × channels.
#[inline(always)]
pub(super) fn gather(window: &Window, x: &[f32], y: &mut [f32]) {
    let c = window.from.channels;
    let line = window.kernel.1 * c;
    let mut rows = y.chunks_exact_mut(window.taps() * c);
    for row in 0..window.to.0 {
        let (top, above, height) = window.vertical(row);
        for column in 0..window.to.1 {
            let (left, before, width) = window.horizontal(column);
            let Some(patch) = rows.next() else { return };
            if height * width < window.taps() {
                patch.fill(0.0);
            }
            for tap in 0..height {
                let from = &x[((top + tap) * window.from.width + left) * c..][..width * c];
                patch[(above + tap) * line + before * c..][..width * c].copy_from_slice(from);
            }
        }
    }
}

/// A convolution of each channel by itself.
#[derive(Clone, Debug)]
pub(crate) struct Depthwise {
    pub(crate) window: Window,
    /// Per place of the kernel its C weights.
    pub(crate) weights: Vec<f32>,
    pub(crate) bias: Vec<f32>,
    pub(crate) activation: Activation,
}

/// On one image.
#[inline(always)]
pub(super) unsafe fn depthwise<S: Simd>(layer: &Depthwise, x: &[f32], y: &mut [f32]) {
    let window = &layer.window;
    let c = window.from.channels;
    assert_eq!(
        (x.len(), y.len()),
        (window.from.values(), window.to.0 * window.to.1 * c)
    );
    assert_eq!((layer.weights.len(), layer.bias.len()), (window.taps() * c, c));
    let whole = c / S::LANES * S::LANES;
    for (row, line) in y.chunks_exact_mut(window.to.1 * c).enumerate() {
        let (top, above, height) = window.vertical(row);
        for (column, y) in line.chunks_exact_mut(c).enumerate() {
            let (left, before, width) = window.horizontal(column);
            let (x, weights) = if height * width > 0 {
                let weights = &layer.weights[(above * window.kernel.1 + before) * c..];
                (&x[(top * window.from.width + left) * c..], weights)
            } else {
                (x, &layer.weights[..])
            };
            let (x_line, w_line) = (window.from.width * c, window.kernel.1 * c);
            // SAFETY: the caller has the instructions; `span` keeps places on the map and on the kernel.
            unsafe {
                for channel in (0..whole).step_by(S::LANES) {
                    let mut sum = S::load(layer.bias.as_ptr().add(channel));
                    for i in 0..height {
                        for j in 0..width {
                            let x = S::load(x.as_ptr().add(i * x_line + j * c + channel));
                            let w = S::load(weights.as_ptr().add(i * w_line + j * c + channel));
                            sum = S::fma(x, w, sum);
                        }
                    }
                    S::store(y.as_mut_ptr().add(channel), sum);
                }
            }
            for channel in whole..c {
                let mut sum = layer.bias[channel];
                for i in 0..height {
                    for j in 0..width {
                        sum += x[i * x_line + j * c + channel] * weights[i * w_line + j * c + channel];
                    }
                }
                y[channel] = sum;
            }
        }
    }
    if layer.activation != Activation::None {
        // SAFETY: the caller has the instructions.
        unsafe { activate_all::<S>(layer.activation, y) };
    }
}

/// A layer norm over the channels.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    pub(crate) channels: usize,
    /// Where it is not 1.
    pub(crate) scale: Option<Vec<f32>>,
    /// Where it is not 0.
    pub(crate) shift: Option<Vec<f32>>,
    pub(crate) epsilon: f32,
}

/// In place.
#[inline(always)]
pub(super) unsafe fn norm<S: Simd>(layer: &Norm, y: &mut [f32]) {
    let c = layer.channels;
    let whole = c / S::LANES * S::LANES;
    for row in y.chunks_exact_mut(c) {
        // SAFETY: the caller has the instructions; vectors are inside of the row.
        let (mean, scale) = unsafe {
            let rest = &row[whole..];
            let mut sums = S::splat(0.0);
            for at in (0..whole).step_by(S::LANES) {
                sums = S::add(sums, S::load(row.as_ptr().add(at)));
            }
            let mean = (total::<S>(sums) + rest.iter().sum::<f32>()) / c as f32;
            let minus = S::splat(-mean);
            let mut squares = S::splat(0.0);
            for at in (0..whole).step_by(S::LANES) {
                let x = S::add(S::load(row.as_ptr().add(at)), minus);
                squares = S::fma(x, x, squares);
            }
            let square = total::<S>(squares) + rest.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>();
            (mean, 1.0 / (square / c as f32 + layer.epsilon).sqrt())
        };
        match (&layer.scale, &layer.shift) {
            (None, None) => row.iter_mut().for_each(|x| *x = (*x - mean) * scale),
            (Some(factors), None) => {
                for (x, factor) in row.iter_mut().zip(factors) {
                    *x = (*x - mean) * (scale * factor);
                }
            }
            (factors, Some(shifts)) => {
                for (i, (x, shift)) in row.iter_mut().zip(shifts).enumerate() {
                    let factor = factors.as_ref().map_or(1.0, |factors| factors[i]);
                    *x = (*x - mean) * (scale * factor) + shift;
                }
            }
        }
    }
}

/// The sum of a vector's elements.
#[inline(always)]
unsafe fn total<S: Simd>(v: S::V) -> f32 {
    let mut values = [0.0; 16];
    // SAFETY: the caller has the instructions; no vector is longer.
    unsafe { S::store(values.as_mut_ptr(), v) };
    let mut width = 8;
    while width > 0 {
        for i in 0..width {
            values[i] += values[i + width];
        }
        width /= 2;
    }
    values[0]
}

/// y += s x, s per channel where it is not 1.
#[inline(always)]
pub(super) fn add(scale: Option<&[f32]>, x: &[f32], y: &mut [f32]) {
    match scale {
        None => y.iter_mut().zip(x).for_each(|(y, x)| *y += x),
        Some(scale) => {
            for (y, x) in y.chunks_exact_mut(scale.len()).zip(x.chunks_exact(scale.len())) {
                for ((y, x), s) in y.iter_mut().zip(x).zip(scale) {
                    *y += s * x;
                }
            }
        }
    }
}

/// y += b, b per channel.
#[inline(always)]
pub(super) fn shift(bias: &[f32], y: &mut [f32]) {
    for row in y.chunks_exact_mut(bias.len()) {
        row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
    }
}

/// Adds to each place of a fine map the place of a coarse one that it lies in; on one image, in place.
#[inline(always)]
pub(super) fn add_upsampled(fine: Map, factors: (usize, usize), coarse: &[f32], y: &mut [f32]) {
    let c = fine.channels;
    let coarse_line = fine.width / factors.1 * c;
    for (row, line) in y.chunks_exact_mut(fine.width * c).enumerate() {
        let coarse = &coarse[row / factors.0 * coarse_line..][..coarse_line];
        for (places, coarse) in line.chunks_exact_mut(factors.1 * c).zip(coarse.chunks_exact(c)) {
            for place in places.chunks_exact_mut(c) {
                place.iter_mut().zip(coarse).for_each(|(y, coarse)| *y += coarse);
            }
        }
    }
}

/// The mean over all places of an image.
#[inline(always)]
pub(super) fn pool(x: &[f32], y: &mut [f32]) {
    let c = y.len();
    y.fill(0.0);
    for row in x.chunks_exact(c) {
        y.iter_mut().zip(row).for_each(|(y, x)| *y += x);
    }
    let share = 1.0 / (x.len() / c) as f32;
    y.iter_mut().for_each(|y| *y *= share);
}
