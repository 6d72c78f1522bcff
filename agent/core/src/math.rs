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
            *y = dot(row, x);
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

/// Σ a_i b_i.
#[inline]
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    reduce(a, b, |a, b| a * b)
}

/// Σ (a_i − b_i)².
pub(crate) fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    reduce(a, b, |a, b| (a - b) * (a - b))
}

/// Turns logits into probabilities in place.
pub(crate) fn softmax(z: &mut [f32]) {
    let max = z.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for z in z.iter_mut() {
        *z = libm::expf(*z - max);
        sum += *z;
    }
    for z in z.iter_mut() {
        *z /= sum;
    }
}

/// What is added to logits, and how much of the confidence it costs to go against them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shift<'a> {
    /// One per class.
    pub(crate) offsets: &'a [f32],
    /// β of [`top`].
    pub(crate) doubt: f32,
}

/// Turns logits into p = softmax(z · scale + offsets); gives the class c of the largest, and the confidence.
///
/// That is p_c where c is also the class of the largest logit, and otherwise p_c (q_c / max q)^β with
/// q = softmax(z · scale): where the offsets overrule the logits, both must be believed.
pub(crate) fn top(z: &mut [f32], scale: f32, shift: Option<Shift<'_>>) -> (usize, f32) {
    let Some(Shift { offsets, doubt }) = shift else {
        z.iter_mut().for_each(|z| *z *= scale);
        softmax(z);
        return largest(z);
    };
    z.iter_mut().for_each(|z| *z *= scale);
    let (evident, most) = largest(z);
    let (mut class, mut best, mut own) = (evident, f32::NEG_INFINITY, most);
    for (k, (z, l)) in z.iter_mut().zip(offsets).enumerate() {
        let shifted = *z + l;
        if shifted > best {
            (class, best, own) = (k, shifted, *z);
        }
        *z = shifted;
    }
    softmax(z);
    let discount = if class == evident {
        1.0
    } else {
        libm::expf(doubt * (own - most))
    };
    (class, z[class] * discount)
}

/// The first of the largest, and its value.
fn largest(values: &[f32]) -> (usize, f32) {
    let mut best = (0, f32::NEG_INFINITY);
    for (k, value) in values.iter().enumerate() {
        if *value > best.1 {
            best = (k, *value);
        }
    }
    best
}

/// Writes p^(1/t), made to sum to one.
pub(crate) fn sharpen(p: &[f32], t: f32, q: &mut [f32]) {
    for (q, p) in q.iter_mut().zip(p) {
        // A probability of 0 has the logarithm −∞, and softmax gives it 0 again.
        *q = libm::logf(*p) / t;
    }
    softmax(q);
}

/// Entropy of probabilities in nats.
pub(crate) fn entropy(p: &[f32]) -> f32 {
    let sum: f32 = p.iter().filter(|p| **p > 0.0).map(|p| p * libm::logf(*p)).sum();
    if sum == 0.0 { 0.0 } else { -sum }
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
        let (class, confidence) = top(&mut p, 1.0, shift(2.0));
        assert_eq!(class, 1);
        assert!((confidence - p[1] * libm::expf(-1.0)).abs() < 1e-6, "{confidence}");
        assert_eq!(top(&mut z.clone(), 1.0, shift(0.0)), (1, p[1]));
        // Here they agree with the logits.
        let mut p = [0.0, 0.5, -1.0];
        let (class, confidence) = top(&mut p, 1.0, shift(2.0));
        assert_eq!((class, confidence), (1, p[1]));
        assert_eq!(top(&mut z.clone(), 2.0, None).0, 0);
    }

    #[test]
    fn entropy_is_zero_when_certain_and_ln_k_when_uniform() {
        assert_eq!(entropy(&[1.0, 0.0, 0.0]), 0.0);
        assert!((entropy(&[0.25; 4]) - 4f32.ln()).abs() < 1e-6);
    }

    extern crate std;
}
