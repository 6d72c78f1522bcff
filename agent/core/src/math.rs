//! Floating-point arithmetic with a fixed order of operations.
//!
//! A reduction runs in [`LANES`] independent lanes that are added up as a tree. A compiler can map the
//! lanes to vectors of any width without changing the order, so that the result is the same to the bit
//! with SSE, AVX, NEON or none. Multiplications and additions are never fused, for the same reason. What is
//! worth it is compiled for the wide vectors of x86-64, too, and chosen when the program runs ([`widest`]).

const LANES: usize = 16;

/// Makes a function that is compiled several times, and runs the one with the widest vectors that the machine
/// has. Asking the machine takes the standard library.
macro_rules! widest {
    ($(#[$meta:meta])* fn $name:ident($($argument:ident: $type:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        pub(crate) fn $name($($argument: $type),*) {
            #[inline(always)]
            fn portable($($argument: $type),*) $body
            #[cfg(all(target_arch = "x86_64", feature = "std"))]
            {
                #[target_feature(enable = "avx512f")]
                fn avx512($($argument: $type),*) {
                    portable($($argument),*);
                }
                #[target_feature(enable = "avx2")]
                fn avx2($($argument: $type),*) {
                    portable($($argument),*);
                }
                if std::arch::is_x86_feature_detected!("avx512f") {
                    // SAFETY: the machine has the instructions.
                    return unsafe { avx512($($argument),*) };
                }
                if std::arch::is_x86_feature_detected!("avx2") {
                    // SAFETY: the machine has the instructions.
                    return unsafe { avx2($($argument),*) };
                }
            }
            portable($($argument),*);
        }
    };
}

widest! {
    /// Writes y = M x, M row by row.
    fn matrix_vector(matrix: &[f32], x: &[f32], y: &mut [f32]) {
        /// Rows at a time: one row alone waits for its own sums.
        const ROWS: usize = 4;
        let n = x.len();
        let whole = n / LANES * LANES;
        let rows = y.len() / ROWS * ROWS;
        for (matrix, y) in matrix.chunks_exact(n * ROWS).zip(y.chunks_exact_mut(ROWS)) {
            let mut lanes = [[0.0; LANES]; ROWS];
            for at in (0..whole).step_by(LANES) {
                let x = &x[at..at + LANES];
                for (row, lanes) in lanes.iter_mut().enumerate() {
                    let m = &matrix[row * n + at..][..LANES];
                    for i in 0..LANES {
                        lanes[i] += m[i] * x[i];
                    }
                }
            }
            for (row, (lanes, y)) in lanes.into_iter().zip(y).enumerate() {
                let mut lanes = lanes;
                let m = &matrix[row * n + whole..][..n - whole];
                for ((lane, m), x) in lanes.iter_mut().zip(m).zip(&x[whole..]) {
                    *lane += m * x;
                }
                *y = sum_lanes(lanes);
            }
        }
        for (row, y) in matrix[rows * n..].chunks_exact(n).zip(&mut y[rows..]) {
            *y = reduce(row, x, |m, x| m * x);
        }
    }
}

widest! {
    /// y −= s x.
    fn subtract_scaled(s: f32, x: &[f32], y: &mut [f32]) {
        for (y, x) in y.iter_mut().zip(x) {
            *y -= s * x;
        }
    }
}

#[inline(always)]
fn sum_lanes(mut lanes: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] += lanes[i + width];
        }
        width /= 2;
    }
    lanes[0]
}

/// Reduces `f(a_i, b_i)` over two slices of one length by addition.
#[inline(always)]
fn reduce(a: &[f32], b: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    debug_assert_eq!(a.len(), b.len());
    let mut lanes = [0.0; LANES];
    let (mut a, mut b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
    for (a, b) in a.by_ref().zip(b.by_ref()) {
        for i in 0..LANES {
            lanes[i] += f(a[i], b[i]);
        }
    }
    for (lane, (&a, &b)) in lanes.iter_mut().zip(a.remainder().iter().zip(b.remainder())) {
        *lane += f(a, b);
    }
    sum_lanes(lanes)
}

widest! {
    /// Gives Σ a_i b_i.
    fn find_dot(a: &[f32], b: &[f32], sum: &mut f32) {
        *sum = reduce(a, b, |a, b| a * b);
    }
}

widest! {
    /// Gives Σ (a_i − b_i)².
    fn find_squared_distance(a: &[f32], b: &[f32], sum: &mut f32) {
        *sum = reduce(a, b, |a, b| (a - b) * (a - b));
    }
}

/// Σ a_i b_i.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sum = 0.0;
    find_dot(a, b, &mut sum);
    sum
}

/// Σ (a_i − b_i)².
pub(crate) fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    let mut sum = 0.0;
    find_squared_distance(a, b, &mut sum);
    sum
}

/// e^x for x ≤ 0, and 0 where that is below 1e-37; one unit in the last place off at most.
///
/// Written out here, and not taken from libm, because this way a compiler makes vectors of it.
#[inline(always)]
fn exp(x: f32) -> f32 {
    /// Where it is added, halves are rounded away: what is left in the last bits is a whole number.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts; a whole number of the first is exact.
    const LN_2: [f32; 2] = [0.693_359_4, -0.000_212_194_44];
    let rounded = x * core::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = x - n * LN_2[0] - n * LN_2[1];
    // The series up to r⁷: |r| ≤ ln 2 / 2.
    let mut series = 1.0 / 5040.0;
    for inverse in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5] {
        series = series * r + inverse;
    }
    let power = f32::from_bits((rounded.to_bits() << 23).wrapping_add(1f32.to_bits()));
    let value = (series * (r * r) + r + 1.0) * power;
    if x < -85.0 { 0.0 } else { value }
}

widest! {
    /// Writes e^(z − most) in place of each z, and gives two sums: of these, and of these times z − most.
    fn exponentials(z: &mut [f32], most: f32, sums: &mut [f32; 2]) {
        let mut lanes = [[0.0; LANES]; 2];
        let mut chunks = z.chunks_exact_mut(LANES);
        for chunk in chunks.by_ref() {
            for i in 0..LANES {
                let below = chunk[i] - most;
                let e = exp(below);
                chunk[i] = e;
                lanes[0][i] += e;
                // What adds nothing may be infinitely far below.
                lanes[1][i] += e * if below < -85.0 { -85.0 } else { below };
            }
        }
        for (i, z) in chunks.into_remainder().iter_mut().enumerate() {
            let below = *z - most;
            let e = exp(below);
            *z = e;
            lanes[0][i] += e;
            lanes[1][i] += e * if below < -85.0 { -85.0 } else { below };
        }
        *sums = lanes.map(sum_lanes);
    }
}

widest! {
    /// Gives the largest; −∞ for none.
    fn find_largest(values: &[f32], largest: &mut f32) {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let mut chunks = values.chunks_exact(LANES);
        for chunk in chunks.by_ref() {
            for i in 0..LANES {
                lanes[i] = if chunk[i] > lanes[i] { chunk[i] } else { lanes[i] };
            }
        }
        for (lane, value) in lanes.iter_mut().zip(chunks.remainder()) {
            *lane = if *value > *lane { *value } else { *lane };
        }
        *largest = lanes.into_iter().fold(f32::NEG_INFINITY, f32::max);
    }
}

widest! {
    /// Gives the largest of a + b.
    fn find_largest_sum(a: &[f32], b: &[f32], largest: &mut f32) {
        let mut lanes = [f32::NEG_INFINITY; LANES];
        let (mut a, mut b) = (a.chunks_exact(LANES), b.chunks_exact(LANES));
        for (a, b) in a.by_ref().zip(b.by_ref()) {
            for i in 0..LANES {
                let sum = a[i] + b[i];
                lanes[i] = if sum > lanes[i] { sum } else { lanes[i] };
            }
        }
        for (lane, (a, b)) in lanes.iter_mut().zip(a.remainder().iter().zip(b.remainder())) {
            let sum = a + b;
            *lane = if sum > *lane { sum } else { *lane };
        }
        *largest = lanes.into_iter().fold(f32::NEG_INFINITY, f32::max);
    }
}

/// The largest of some values; −∞ for none.
pub(crate) fn max(values: &[f32]) -> f32 {
    let mut largest = 0.0;
    find_largest(values, &mut largest);
    largest
}

/// Turns logits into probabilities in place; gives their entropy in nats.
pub(crate) fn softmax(z: &mut [f32]) -> f32 {
    let most = max(z);
    softmax_below(z, most)
}

/// [`softmax`] of logits of which the largest is known.
fn softmax_below(z: &mut [f32], most: f32) -> f32 {
    let mut sums = [0.0; 2];
    exponentials(z, most, &mut sums);
    let [sum, weighted] = sums;
    let inverse = 1.0 / sum;
    z.iter_mut().for_each(|z| *z *= inverse);
    // −Σ p ln p with p = e^x / S is ln S − Σ e^x x / S. Rounding may leave a little less than nothing.
    (libm::logf(sum) - weighted * inverse).max(0.0)
}

/// What is added to logits, and how much of the confidence it costs to go against them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shift<'a> {
    /// One per class.
    pub(crate) offsets: &'a [f32],
    /// β of [`top`].
    pub(crate) doubt: f32,
}

/// What [`top`] says of logits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Top {
    /// The class of the largest probability; the first of several.
    pub(crate) class: usize,
    /// What it is believed with.
    pub(crate) confidence: f32,
    /// Of the probabilities, in nats.
    pub(crate) entropy: f32,
}

/// Turns logits into p = softmax(z · scale + offsets); gives the class c of the largest, and the confidence.
///
/// That is p_c where c is also the class of the largest logit, and otherwise p_c (q_c / max q)^β with
/// q = softmax(z · scale): where the offsets overrule the logits, both must be believed.
pub(crate) fn top(z: &mut [f32], scale: f32, shift: Option<Shift<'_>>) -> Top {
    z.iter_mut().for_each(|z| *z *= scale);
    let evident = max(z);
    let Some(Shift { offsets, doubt }) = shift else {
        let class = first(z.iter().copied(), evident);
        let entropy = softmax_below(z, evident);
        return Top {
            class,
            confidence: z[class],
            entropy,
        };
    };
    let mut most = 0.0;
    find_largest_sum(z, offsets, &mut most);
    let class = first(z.iter().zip(offsets).map(|(z, l)| z + l), most);
    let own = z[class];
    z.iter_mut().zip(offsets).for_each(|(z, l)| *z += l);
    let entropy = softmax_below(z, most);
    let discount = if own == evident {
        1.0
    } else {
        libm::expf(doubt * (own - evident))
    };
    Top {
        class,
        confidence: z[class] * discount,
        entropy,
    }
}

/// The place of the first that is as large; 0 where none is.
fn first(mut values: impl Iterator<Item = f32>, largest: f32) -> usize {
    values.position(|value| value == largest).unwrap_or(0)
}

/// Writes p^(1/t), made to sum to one.
pub(crate) fn sharpen(p: &[f32], t: f32, q: &mut [f32]) {
    for (q, p) in q.iter_mut().zip(p) {
        // A probability of 0 has the logarithm −∞, and softmax gives it 0 again.
        *q = libm::logf(*p) / t;
    }
    softmax(q);
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn dot_equals_the_sum_in_double_precision() {
        for n in [0, 1, 15, 16, 17, 100, 257] {
            let a: Vec<f32> = (0..n).map(|i| (i as f32 * 0.37).sin()).collect();
            let b: Vec<f32> = (0..n).map(|i| (i as f32 * 0.11).cos()).collect();
            let exact: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum();
            assert!((f64::from(dot(&a, &b)) - exact).abs() < 1e-4, "n = {n}");
        }
    }

    #[test]
    fn a_product_has_the_bits_of_its_rows_sums() {
        for (rows, n) in [(1, 5), (4, 16), (7, 33), (100, 256), (9, 1)] {
            let matrix: Vec<f32> = (0..rows * n).map(|i| (i as f32 * 0.37).sin()).collect();
            let x: Vec<f32> = (0..n).map(|i| (i as f32 * 0.11).cos()).collect();
            let mut y = alloc::vec![0.0; rows];
            matrix_vector(&matrix, &x, &mut y);
            let expected: Vec<f32> = matrix.chunks_exact(n).map(|row| dot(row, &x)).collect();
            assert_eq!(y, expected, "{rows}x{n}");
        }
    }

    #[test]
    fn softmax_of_huge_logits_is_finite_and_sums_to_one() {
        let mut z = [1e30, -1e30, 1e30, 0.0];
        softmax(&mut z);
        assert_eq!(z, [0.5, 0.0, 0.5, 0.0]);
    }

    #[test]
    fn offsets_that_overrule_the_logits_cost_confidence() {
        let offsets = [0.0, 1.0, 0.0];
        let shift = |doubt| {
            Some(Shift {
                offsets: &offsets,
                doubt,
            })
        };
        let z = [1.0, 0.5, -1.0];
        let mut p = z;
        let Top { class, confidence, .. } = top(&mut p, 1.0, shift(2.0));
        assert_eq!(class, 1);
        assert!((confidence - p[1] * libm::expf(-1.0)).abs() < 1e-6, "{confidence}");
        assert_eq!(top(&mut z.clone(), 1.0, shift(0.0)).confidence, p[1]);
        // Here they agree with the logits.
        let mut p = [0.0, 0.5, -1.0];
        let Top { class, confidence, .. } = top(&mut p, 1.0, shift(2.0));
        assert_eq!((class, confidence), (1, p[1]));
        assert_eq!(top(&mut z.clone(), 2.0, None).class, 0);
    }

    #[test]
    fn exponentials_are_those_of_the_library_to_the_last_place() {
        let mut x = 0.0_f32;
        while x > -90.0 {
            let (own, exact) = (f64::from(exp(x)), libm::exp(f64::from(x)));
            if x < -85.0 {
                assert_eq!(own, 0.0);
            } else {
                assert!((own / exact - 1.0).abs() < 1.2e-7, "e^{x}: {own:e} for {exact:e}");
            }
            x -= 0.000_917;
        }
        assert_eq!((exp(0.0), exp(-0.0), exp(f32::NEG_INFINITY)), (1.0, 1.0, 0.0));
    }

    #[test]
    fn the_first_of_the_largest_is_found_wherever_it_stands() {
        for n in [2, 15, 16, 17, 40, 100] {
            for place in 0..n {
                let mut z: Vec<f32> = (0..n).map(|i| -((i * 7 % n) as f32) - 1.0).collect();
                z[place] = 3.0;
                *z.last_mut().unwrap() = 3.0;
                assert_eq!(max(&z), 3.0);
                assert_eq!(top(&mut z.clone(), 2.0, None).class, place);
                let offsets = alloc::vec![0.5; n];
                let shift = Some(Shift {
                    offsets: &offsets,
                    doubt: 1.0,
                });
                assert_eq!(top(&mut z, 2.0, shift).class, place);
            }
        }
    }

    #[test]
    fn entropy_is_zero_when_certain_ln_k_when_uniform_and_right_in_between() {
        assert_eq!(softmax(&mut [900.0, 0.0, -1e30]), 0.0);
        assert!((softmax(&mut [7.0; 4]) - 4f32.ln()).abs() < 1e-6);
        let mut p: Vec<f32> = (0..100).map(|i| (i as f32 * 0.7).sin() * 4.0).collect();
        let entropy = softmax(&mut p);
        let exact: f64 = p.iter().map(|p| -f64::from(*p) * f64::from(*p).ln()).sum();
        assert!((f64::from(entropy) - exact).abs() < 2e-6, "{entropy} for {exact}");
    }

    extern crate std;
}
