//! The arithmetic of a plan, row by row: a row holds the channels of one place of one image.
//!
//! Every function does a part of a step, and every value comes out of the same operations in the same order
//! whatever the part that it is in: a plan gives the same bits however it is cut.

use std::marker::PhantomData;
use std::ops::Range;
use std::slice;

use super::simd::Simd;

/// What is applied to the result of a linear layer or a convolution.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Activation {
    /// Nothing.
    None,
    /// The exact one, through the error function.
    Gelu,
    /// Kept within bounds: ReLU is 0 to infinity.
    Clip(f32, f32),
}

/// What several threads write, each its own part of it.
#[derive(Clone, Copy)]
pub(crate) struct Shared<'a> {
    at: *mut f32,
    len: usize,
    life: PhantomData<&'a mut [f32]>,
}

// SAFETY: whoever takes parts of it promises that they do not overlap.
unsafe impl Send for Shared<'_> {}
// SAFETY: as above.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub(crate) fn new(values: &'a mut [f32]) -> Self {
        Self {
            at: values.as_mut_ptr(),
            len: values.len(),
            life: PhantomData,
        }
    }

    pub(crate) fn len(self) -> usize {
        self.len
    }

    /// # Safety
    /// No part that is held at the same time overlaps this one.
    #[inline(always)]
    pub(crate) unsafe fn part(self, range: Range<usize>) -> &'a mut [f32] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: it is inside of the values, and nobody else's as the caller says.
        unsafe { std::slice::from_raw_parts_mut(self.at.add(range.start), range.len()) }
    }
}

/// Weights K×N in panels of [`super::simd::Isa::panel`] columns, one after another; in a panel row by row. The
/// last is filled up with zeros.
#[derive(Clone, Debug)]
enum Panels {
    /// Where every weight is a half, as in our packages: half of the memory to stream.
    Half(Vec<u16>),
    Full(Vec<f32>),
}

/// A linear layer, packed for an instruction set: y = act(x W + b).
#[derive(Clone, Debug)]
pub(crate) struct Packed {
    pub(crate) inputs: usize,
    pub(crate) outputs: usize,
    panels: Panels,
    /// As long as the panels are wide.
    bias: Vec<f32>,
    activation: Activation,
}

impl Packed {
    /// From K×N weights row by row, and N biases, for panels of so many columns.
    pub(crate) fn new(weights: &[f32], inputs: usize, bias: &[f32], activation: Activation, panel: usize) -> Self {
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
            activation,
        }
    }
}

/// A part of y = act(x W + b): some rows of x, some panels of W; `onto` what y holds, it is added.
///
/// # Safety
/// The instructions are enabled. Nobody else touches this part of y.
#[inline(always)]
pub(crate) unsafe fn linear<S: Simd>(
    layer: &Packed,
    rows: Range<usize>,
    panels: Range<usize>,
    x: &[f32],
    onto: bool,
    y: Shared<'_>,
) {
    let count = x.len() / layer.inputs;
    assert_eq!((x.len(), y.len()), (count * layer.inputs, count * layer.outputs));
    assert!(rows.end <= count);
    match &layer.panels {
        // SAFETY: the caller has the instructions; lengths were checked above.
        Panels::Half(weights) => unsafe { product::<S, u16>(layer, weights, rows, panels, x, onto, y) },
        // SAFETY: as above.
        Panels::Full(weights) => unsafe { product::<S, f32>(layer, weights, rows, panels, x, onto, y) },
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
unsafe fn product<S: Simd, W: Weight>(
    layer: &Packed,
    weights: &[W],
    rows: Range<usize>,
    panels: Range<usize>,
    x: &[f32],
    onto: bool,
    y: Shared<'_>,
) {
    let (k, n, panel) = (layer.inputs, layer.outputs, 2 * S::LANES);
    // As many rows at a time as the nearest cache holds of the result; then panels outside and rows inside: a
    // panel stays there while the rows pass.
    let block = BLOCK_TILES * S::TILE_ROWS;
    for start in rows.clone().step_by(block) {
        let rows = start..rows.end.min(start + block);
        for at in panels.clone() {
            let first = at * panel;
            let tile = Tile {
                layer,
                weights: weights[at * k * panel..][..k * panel].as_ptr(),
                bias: layer.bias[first..][..panel].as_ptr(),
                first,
                columns: (n - first).min(panel),
                x: x.as_ptr(),
                onto,
                y: y.at,
            };
            // SAFETY: rows and columns are inside of the matrices.
            unsafe {
                if tile.columns > S::LANES {
                    tile.run_rows::<S, 2>(rows.clone());
                } else {
                    tile.run_rows::<S, 1>(rows.clone());
                }
            }
        }
    }
}

/// Tiles of rows that pass a panel at a time.
const BLOCK_TILES: usize = 8;

/// Bytes of weights that are fetched ahead: long enough for the third cache to bring them, and few enough for the
/// nearest to hold them. Rows after the first ask for the same once more, which costs next to nothing.
const AHEAD: usize = 8 << 10;
/// Bytes of a line of the caches.
const LINE: usize = 64;

/// A part of a product that is kept in registers: some rows, and the columns of a panel.
struct Tile<'a, W> {
    layer: &'a Packed,
    weights: *const W,
    bias: *const f32,
    first: usize,
    columns: usize,
    x: *const f32,
    onto: bool,
    y: *mut f32,
}

impl<W: Weight> Tile<'_, W> {
    #[inline(always)]
    unsafe fn run_rows<S: Simd, const VECTORS: usize>(&self, rows: Range<usize>) {
        let mut row = rows.start;
        while row < rows.end {
            // One row or two by themselves take as long as four: each sum waits for itself.
            let height = match rows.end - row {
                left if left > S::TILE_ROWS && left <= S::TILE_ROWS + 2 => S::TILE_ROWS - 2,
                left => left.min(S::TILE_ROWS),
            };
            // SAFETY: the caller's; no tile is higher than the rows that are left.
            unsafe {
                row += match height {
                    12.. => self.run::<S, 12, VECTORS>(row),
                    8..12 => self.run::<S, 8, VECTORS>(row),
                    6 | 7 => self.run::<S, 6, VECTORS>(row),
                    4 | 5 => self.run::<S, 4, VECTORS>(row),
                    3 => self.run::<S, 3, VECTORS>(row),
                    2 => self.run::<S, 2, VECTORS>(row),
                    _ => self.run::<S, 1, VECTORS>(row),
                };
            }
        }
    }

    /// Gives the number of rows.
    #[inline(always)]
    #[allow(clippy::needless_range_loop)] // counted loops of constant length are unrolled, and sums stay in registers
    unsafe fn run<S: Simd, const ROWS: usize, const VECTORS: usize>(&self, row: usize) -> usize {
        let (k, n, lanes) = (self.layer.inputs, self.layer.outputs, S::LANES);
        // SAFETY: rows and columns are inside of the matrices, and panels are as wide as two vectors.
        unsafe {
            let x = self.x.add(row * k);
            let mut sums = [[S::load(self.bias); VECTORS]; ROWS];
            for v in 1..VECTORS {
                let bias = S::load(self.bias.add(v * lanes));
                for sum in &mut sums {
                    sum[v] = bias;
                }
            }
            let mut weights = self.weights;
            for i in 0..k {
                for line in 0..(2 * lanes * size_of::<W>()).div_ceil(LINE) {
                    S::prefetch(weights.cast::<u8>().wrapping_add(AHEAD + line * LINE));
                }
                let mut w = [W::load::<S>(weights); VECTORS];
                for v in 1..VECTORS {
                    w[v] = W::load::<S>(weights.add(v * lanes));
                }
                weights = weights.add(2 * lanes);
                for (r, sum) in sums.iter_mut().enumerate() {
                    let value = S::splat(*x.wrapping_add(r.wrapping_mul(k)).add(i));
                    for v in 0..VECTORS {
                        sum[v] = S::fma(value, w[v], sum[v]);
                    }
                }
            }
            for (r, sum) in sums.iter_mut().enumerate() {
                let y = self.y.add((row + r) * n + self.first);
                // No closures in here: one that is not inlined would call every instruction.
                for v in 0..VECTORS {
                    sum[v] = activate::<S>(self.layer.activation, sum[v]);
                }
                if self.columns == VECTORS * lanes {
                    for v in 0..VECTORS {
                        let y = y.add(v * lanes);
                        let value = if self.onto { S::add(sum[v], S::load(y)) } else { sum[v] };
                        S::store(y, value);
                    }
                } else {
                    let mut values = [0.0; 32];
                    for v in 0..VECTORS {
                        S::store(values.as_mut_ptr().add(v * lanes), sum[v]);
                    }
                    for (column, value) in values.iter().enumerate().take(self.columns) {
                        let y = y.add(column);
                        *y = if self.onto { *y + value } else { *value };
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
pub(crate) unsafe fn activate_all<S: Simd>(activation: Activation, y: &mut [f32]) {
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
pub struct Map {
    /// Lines.
    pub height: usize,
    /// Places of a line.
    pub width: usize,
    /// Values of a place, which lie side by side.
    pub channels: usize,
}

impl Map {
    /// Its places.
    #[must_use]
    pub fn rows(self) -> usize {
        self.height * self.width
    }

    /// Its values.
    #[must_use]
    pub fn values(self) -> usize {
        self.rows() * self.channels
    }
}

/// How a kernel moves over a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// The map.
    pub from: Map,
    /// Height and width of the result.
    pub to: (usize, usize),
    /// Height and width.
    pub kernel: (usize, usize),
    /// Downwards, and to the right.
    pub stride: (usize, usize),
    /// Zeros above and to the left; below and to the right there are as many as the result asks for.
    pub padding: (usize, usize),
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

    /// Places of the kernel.
    #[must_use]
    pub fn taps(&self) -> usize {
        self.kernel.0 * self.kernel.1
    }
}

/// Lays out what a kernel sees at each place as a row: kernel height × width × channels. Does these lines of the
/// result, those of all images counted.
///
/// # Safety
/// The instructions are enabled.
#[inline(always)]
pub(crate) unsafe fn gather<S: Simd>(window: &Window, lines: Range<usize>, x: &[f32], y: &mut [f32]) {
    let c = window.from.channels;
    let line = window.kernel.1 * c;
    let mut rows = y.chunks_exact_mut(window.taps() * c);
    for at in lines {
        let x = &x[at / window.to.0 * window.from.values()..];
        let (top, above, height) = window.vertical(at % window.to.0);
        for column in 0..window.to.1 {
            let (left, before, width) = window.horizontal(column);
            let Some(patch) = rows.next() else { return };
            if height * width < window.taps() {
                patch.fill(0.0);
            }
            for tap in 0..height {
                let from = &x[((top + tap) * window.from.width + left) * c..][..width * c];
                // SAFETY: the caller has the instructions.
                unsafe { copy::<S>(from, &mut patch[(above + tap) * line + before * c..][..width * c]) };
            }
        }
    }
}

/// Copies a few numbers: the C library's function would take longer to call than to run.
///
/// # Safety
/// The instructions are enabled.
#[inline(always)]
unsafe fn copy<S: Simd>(from: &[f32], to: &mut [f32]) {
    let len = to.len();
    assert_eq!(from.len(), len);
    if len < S::LANES {
        return to.copy_from_slice(from);
    }
    let (from, to) = (from.as_ptr(), to.as_mut_ptr());
    // SAFETY: the caller has the instructions; vectors are inside of the slices.
    unsafe {
        for at in (0..len - S::LANES).step_by(S::LANES) {
            S::store(to.add(at), S::load(from.add(at)));
        }
        // The last one may overlap the one before.
        let at = len - S::LANES;
        S::store(to.add(at), S::load(from.add(at)));
    }
}

/// A convolution of each channel by itself.
#[derive(Clone, Debug)]
pub struct Depthwise {
    /// How the kernel moves.
    pub window: Window,
    /// Per place of the kernel its C weights.
    pub weights: Vec<f32>,
    /// C biases.
    pub bias: Vec<f32>,
    /// What is applied to the sums.
    pub activation: Activation,
}

/// Places of a line that a depthwise convolution does at a time, for which it loads each weight once.
const PLACES: usize = 4;
/// The widest kernel, and the longest stride to the right, that are done several places at a time.
const WIDEST: usize = 7;
const LONGEST: usize = 2;
/// Places of the map that a kernel of these sees at so many places.
const SEEN: usize = (PLACES - 1) * LONGEST + WIDEST;
/// What lies beside a map.
static NOTHING: [f32; 4096] = [0.0; 4096];

/// These lines of the result, those of all images counted.
///
/// # Safety
/// The instructions are enabled.
#[inline(always)]
pub(crate) unsafe fn depthwise<S: Simd>(layer: &Depthwise, lines: Range<usize>, x: &[f32], y: &mut [f32]) {
    let window = &layer.window;
    let c = window.from.channels;
    assert_eq!((layer.weights.len(), layer.bias.len()), (window.taps() * c, c));
    for (at, line) in lines.zip(y.chunks_exact_mut(window.to.1 * c)) {
        let x = &x[at / window.to.0 * window.from.values()..][..window.from.values()];
        let rows = window.vertical(at % window.to.0);
        // SAFETY: the caller has the instructions. For the usual kernels the compiler knows which places share what
        // they read.
        unsafe {
            match (window.kernel.1, window.stride.1) {
                _ if c > NOTHING.len() => line_of_any::<S>(layer, rows, x, line),
                (3, 1) => line_by_width::<S, 3, 1>(layer, rows, x, line),
                (3, 2) => line_by_width::<S, 3, 2>(layer, rows, x, line),
                (5, 1) => line_by_width::<S, 5, 1>(layer, rows, x, line),
                (5, 2) => line_by_width::<S, 5, 2>(layer, rows, x, line),
                (7, 1) => line_by_width::<S, 7, 1>(layer, rows, x, line),
                _ => line_of_any::<S>(layer, rows, x, line),
            }
        }
    }
}

/// A line, for any kernel: `rows` of it are on the map, from where on and how many, after how many that are not.
///
/// # Safety
/// The instructions are enabled.
#[inline(always)]
unsafe fn line_of_any<S: Simd>(
    layer: &Depthwise,
    (top, above, height): (usize, usize, usize),
    x: &[f32],
    line: &mut [f32],
) {
    let window = &layer.window;
    let c = window.from.channels;
    let mut column = 0;
    while column < window.to.1 {
        let (left, before, width) = window.horizontal(column);
        // The kernel lies on the map at all of these places, or they are done one by one.
        let last = window.horizontal((column + PLACES - 1).min(window.to.1));
        let inside = column + PLACES <= window.to.1 && before == 0 && (last.1, last.2) == (0, window.kernel.1);
        let count = if inside { PLACES } else { 1 };
        let (x, weights) = if height * width > 0 {
            let weights = &layer.weights[(above * window.kernel.1 + before) * c..];
            (&x[(top * window.from.width + left) * c..], weights)
        } else {
            (x, &layer.weights[..])
        };
        let y = &mut line[column * c..][..count * c];
        // SAFETY: the caller has the instructions; `span` keeps places on the map and on the kernel.
        unsafe {
            if inside {
                places_of_any::<S, PLACES>(layer, (height, width), x, weights, y);
            } else {
                places_of_any::<S, 1>(layer, (height, width), x, weights, y);
            }
        }
        column += count;
    }
}

/// Some places side by side, at each of which this part of the kernel lies on the map.
///
/// # Safety
/// The instructions are enabled.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // counted loops of constant length are unrolled, and sums stay in registers
unsafe fn places_of_any<S: Simd, const N: usize>(
    layer: &Depthwise,
    (height, width): (usize, usize),
    x: &[f32],
    weights: &[f32],
    y: &mut [f32],
) {
    let window = &layer.window;
    let c = window.from.channels;
    let (x_line, w_line, step) = (window.from.width * c, window.kernel.1 * c, window.stride.1 * c);
    let whole = c / S::LANES * S::LANES;
    // SAFETY: the caller's.
    unsafe {
        for channel in (0..whole).step_by(S::LANES) {
            let mut sums = [S::load(layer.bias.as_ptr().add(channel)); N];
            // Pointers that move: an index for each place would be computed, and checked, for each.
            let (mut x, mut w) = (x.as_ptr().add(channel), weights.as_ptr().add(channel));
            for _ in 0..height {
                for j in 0..width {
                    let weight = S::load(w.wrapping_add(j.wrapping_mul(c)));
                    for n in 0..N {
                        let value = S::load(x.wrapping_add(n.wrapping_mul(step).wrapping_add(j.wrapping_mul(c))));
                        sums[n] = S::fma(value, weight, sums[n]);
                    }
                }
                (x, w) = (x.wrapping_add(x_line), w.wrapping_add(w_line));
            }
            for (n, sum) in sums.iter().enumerate() {
                let y = y.as_mut_ptr().add(n * c + channel);
                S::store(y, activate::<S>(layer.activation, *sum));
            }
        }
    }
    if whole == c {
        return;
    }
    for (n, y) in y.chunks_exact_mut(c).enumerate() {
        for channel in whole..c {
            let mut sum = layer.bias[channel];
            for i in 0..height {
                for j in 0..width {
                    sum += x[i * x_line + j * c + n * step + channel] * weights[i * w_line + j * c + channel];
                }
            }
            y[channel] = sum;
        }
        // SAFETY: the caller has the instructions.
        unsafe { activate_all::<S>(layer.activation, &mut y[whole..]) };
    }
}

/// A line, several places at a time, for a kernel of this width and stride.
///
/// # Safety
/// The instructions are enabled.
#[inline(always)]
unsafe fn line_by_width<S: Simd, const WIDTH: usize, const STRIDE: usize>(
    layer: &Depthwise,
    rows: (usize, usize, usize),
    x: &[f32],
    line: &mut [f32],
) {
    // SAFETY: the caller has the instructions.
    unsafe {
        match layer.window.to.1 {
            PLACES.. => line_by_places::<S, PLACES, WIDTH, STRIDE>(layer, rows, x, line),
            2.. => line_by_places::<S, 2, WIDTH, STRIDE>(layer, rows, x, line),
            _ => line_by_places::<S, 1, WIDTH, STRIDE>(layer, rows, x, line),
        }
    }
}

/// A line that is at least so many places wide, which are done at a time.
///
/// # Safety
/// The instructions are enabled.
#[inline(always)]
unsafe fn line_by_places<S: Simd, const N: usize, const WIDTH: usize, const STRIDE: usize>(
    layer: &Depthwise,
    rows: (usize, usize, usize),
    x: &[f32],
    line: &mut [f32],
) {
    let places = layer.window.to.1;
    for column in (0..places).step_by(N) {
        // The last ones together with some that are done once more: they come out the same.
        let column = column.min(places - N);
        // SAFETY: the caller has the instructions.
        unsafe { some_places::<S, N, WIDTH, STRIDE>(layer, rows, column, x, line) };
    }
}

/// So many places side by side. What a kernel sees beside the map is zeros.
///
/// # Safety
/// The instructions are enabled.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // counted loops of constant length are unrolled, and sums stay in registers
unsafe fn some_places<S: Simd, const N: usize, const WIDTH: usize, const STRIDE: usize>(
    layer: &Depthwise,
    (top, above, height): (usize, usize, usize),
    column: usize,
    x: &[f32],
    line: &mut [f32],
) {
    let window = &layer.window;
    let c = window.from.channels;
    let seen = (N - 1) * STRIDE + WIDTH;
    let first = column * STRIDE;
    let weights = &layer.weights[above * WIDTH * c..][..height * WIDTH * c];
    let x = &x[top * window.from.width * c..][..height * window.from.width * c];
    let y = &mut line[column * c..][..N * c];
    // Where each place of the map begins, and where it is a line further down.
    let (mut starts, mut steps) = ([NOTHING.as_ptr(); SEEN], [0; SEEN]);
    for q in 0..seen {
        let at = (first + q).wrapping_sub(window.padding.1);
        if at < window.from.width && height > 0 {
            starts[q] = x[at * c..].as_ptr();
            steps[q] = window.from.width * c;
        }
    }
    // SAFETY: the caller has the instructions; places are on the map, or of zeros, which are as many as channels.
    unsafe {
        let mut channel = 0;
        while channel + S::LANES <= c {
            let mut sums = [S::load(layer.bias.as_ptr().add(channel)); N];
            // There are no weights where no line is on the map.
            let mut weights = weights.as_ptr().wrapping_add(channel);
            for i in 0..height {
                let mut values = [sums[0]; SEEN];
                for q in 0..seen {
                    values[q] = S::load(starts[q].wrapping_add(i.wrapping_mul(steps[q])).wrapping_add(channel));
                }
                for j in 0..WIDTH {
                    let weight = S::load(weights);
                    weights = weights.wrapping_add(c);
                    for n in 0..N {
                        sums[n] = S::fma(values[n * STRIDE + j], weight, sums[n]);
                    }
                }
            }
            for n in 0..N {
                let y = y.as_mut_ptr().add(n * c + channel);
                S::store(y, activate::<S>(layer.activation, sums[n]));
            }
            channel += S::LANES;
        }
        if channel < c {
            for n in 0..N {
                for channel in channel..c {
                    let mut sum = layer.bias[channel];
                    for i in 0..height {
                        for j in 0..WIDTH {
                            let q = n * STRIDE + j;
                            sum += *starts[q].add(i * steps[q] + channel) * weights[(i * WIDTH + j) * c + channel];
                        }
                    }
                    y[n * c + channel] = sum;
                }
                activate_all::<S>(layer.activation, &mut y[n * c + channel..(n + 1) * c]);
            }
        }
    }
}

/// A layer norm over the channels.
#[derive(Clone, Debug)]
pub struct Norm {
    /// C.
    pub channels: usize,
    /// C factors, where they are not 1.
    pub scale: Option<Vec<f32>>,
    /// C summands, where they are not 0.
    pub shift: Option<Vec<f32>>,
    /// What is added to the variance.
    pub epsilon: f32,
}

/// Rows that a norm does at a time, so that none waits for its own sums.
const NORM_ROWS: usize = 4;

/// In place.
///
/// # Safety
/// The instructions are enabled.
#[inline(always)]
pub(crate) unsafe fn norm<S: Simd>(layer: &Norm, y: &mut [f32]) {
    let mut blocks = y.chunks_exact_mut(NORM_ROWS * layer.channels);
    // SAFETY: the caller has the instructions; rows are as many as said.
    unsafe {
        for block in blocks.by_ref() {
            norm_rows::<S, NORM_ROWS>(layer, block);
        }
        for row in blocks.into_remainder().chunks_exact_mut(layer.channels) {
            norm_rows::<S, 1>(layer, row);
        }
    }
}

/// # Safety
/// The instructions are enabled, and there are so many rows.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // counted loops of constant length are unrolled, and sums stay in registers
unsafe fn norm_rows<S: Simd, const ROWS: usize>(layer: &Norm, rows: &mut [f32]) {
    let c = layer.channels;
    let whole = c / S::LANES * S::LANES;
    assert_eq!(rows.len(), ROWS * c);
    let y = rows.as_mut_ptr();
    // SAFETY: the caller has the instructions; vectors are inside of the rows.
    unsafe {
        let mut sums = [S::splat(0.0); ROWS];
        for at in (0..whole).step_by(S::LANES) {
            for r in 0..ROWS {
                sums[r] = S::add(sums[r], S::load(y.add(r * c + at)));
            }
        }
        let (mut means, mut minus) = ([0.0; ROWS], sums);
        for r in 0..ROWS {
            let rest = slice::from_raw_parts(y.add(r * c + whole), c - whole);
            means[r] = (S::sum(sums[r]) + rest.iter().sum::<f32>()) / c as f32;
            minus[r] = S::splat(-means[r]);
        }
        let mut squares = [S::splat(0.0); ROWS];
        for at in (0..whole).step_by(S::LANES) {
            for r in 0..ROWS {
                let x = S::add(S::load(y.add(r * c + at)), minus[r]);
                squares[r] = S::fma(x, x, squares[r]);
            }
        }
        let (mut factors, mut scales) = ([0.0; ROWS], squares);
        for r in 0..ROWS {
            let rest = slice::from_raw_parts(y.add(r * c + whole), c - whole).iter();
            let square = S::sum(squares[r]) + rest.map(|x| (x - means[r]) * (x - means[r])).sum::<f32>();
            factors[r] = 1.0 / (square / c as f32 + layer.epsilon).sqrt();
            scales[r] = S::splat(factors[r]);
        }
        let (scale, shift) = (layer.scale.as_deref(), layer.shift.as_deref());
        for at in (0..whole).step_by(S::LANES) {
            for r in 0..ROWS {
                let y = y.add(r * c + at);
                let by = match scale {
                    Some(scale) => S::mul(scales[r], S::load(scale[at..whole].as_ptr())),
                    None => scales[r],
                };
                let x = S::mul(S::add(S::load(y), minus[r]), by);
                let x = match shift {
                    Some(shift) => S::add(x, S::load(shift[at..whole].as_ptr())),
                    None => x,
                };
                S::store(y, x);
            }
        }
        for r in 0..ROWS {
            for at in whole..c {
                let by = scale.map_or(factors[r], |scale| factors[r] * scale[at]);
                let y = y.add(r * c + at);
                let x = (*y - means[r]) * by;
                *y = shift.map_or(x, |shift| x + shift[at]);
            }
        }
    }
}

/// y += s x, s per channel where it is not 1.
#[inline(always)]
pub(crate) fn add(scale: Option<&[f32]>, x: &[f32], y: &mut [f32]) {
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
pub(crate) fn shift(bias: &[f32], y: &mut [f32]) {
    for row in y.chunks_exact_mut(bias.len()) {
        row.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
    }
}

/// Adds to each place of a fine map the place of a coarse one that it lies in; these lines of it, those of all
/// images counted.
#[inline(always)]
pub(crate) fn add_upsampled(fine: Map, factors: (usize, usize), lines: Range<usize>, coarse: &[f32], y: &mut [f32]) {
    let c = fine.channels;
    let coarse_line = fine.width / factors.1 * c;
    for (at, line) in lines.zip(y.chunks_exact_mut(fine.width * c)) {
        let above = at / fine.height * (fine.height / factors.0) + at % fine.height / factors.0;
        let coarse = &coarse[above * coarse_line..][..coarse_line];
        for (places, coarse) in line.chunks_exact_mut(factors.1 * c).zip(coarse.chunks_exact(c)) {
            for place in places.chunks_exact_mut(c) {
                place.iter_mut().zip(coarse).for_each(|(y, coarse)| *y += coarse);
            }
        }
    }
}

/// The mean over all places of an image.
#[inline(always)]
pub(crate) fn pool(x: &[f32], y: &mut [f32]) {
    let c = y.len();
    y.fill(0.0);
    for row in x.chunks_exact(c) {
        y.iter_mut().zip(row).for_each(|(y, x)| *y += x);
    }
    let share = 1.0 / (x.len() / c) as f32;
    y.iter_mut().for_each(|y| *y *= share);
}
