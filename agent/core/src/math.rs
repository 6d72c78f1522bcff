//! Floating-point arithmetic with a fixed order of operations.
//!
//! A reduction runs in [`LANES`] independent lanes that are added up as a tree ([`Lanes`]), so that the result is the
//! same to the bit with SSE, AVX, NEON or none. Multiplications and additions are never fused, for the same reason.
//! Which vectors there are is asked when the program runs ([`widest`]).

use crate::lanes::{Base, LANES, Lanes, ROWS};

/// Makes a function that is compiled several times, and runs the one with the widest vectors, `L`, that the machine
/// has. Asking the machine takes the standard library.
macro_rules! widest {
    ($(#[$meta:meta])* fn $name:ident<L>($($argument:ident: $type:ty),* $(,)?) $body:block) => {
        $(#[$meta])*
        pub(crate) fn $name($($argument: $type),*) {
            /// # Safety
            /// The machine has the instructions of `L`.
            #[inline(always)]
            unsafe fn with<L: Lanes>($($argument: $type),*) {
                // SAFETY: as the caller says.
                unsafe { $body }
            }
            #[cfg(all(target_arch = "x86_64", feature = "std"))]
            {
                use crate::lanes::{Avx2, Avx512};

                #[target_feature(enable = "avx512f")]
                fn avx512($($argument: $type),*) {
                    // SAFETY: the machine has the instructions, or this would not run.
                    unsafe { with::<Avx512>($($argument),*) };
                }
                #[target_feature(enable = "avx2")]
                fn avx2($($argument: $type),*) {
                    // SAFETY: the machine has the instructions, or this would not run.
                    unsafe { with::<Avx2>($($argument),*) };
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
            // SAFETY: every machine has these instructions.
            unsafe { with::<Base>($($argument),*) };
        }
    };
}

/// Σ m_i x_i of so many rows of a matrix side by side, in lanes.
///
/// # Safety
/// The machine has the instructions of `L`.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // counted loops of constant length are unrolled, and sums stay in registers
unsafe fn products<L: Lanes, const COUNT: usize>(rows: &[f32], x: &[f32]) -> [L; COUNT] {
    let n = x.len();
    assert!(rows.len() / COUNT >= n, "there are as many rows");
    let (whole, rest) = x.as_chunks::<LANES>();
    // Pointers, and products that wrap: with slices every row's length would be checked at every step.
    let mut rows = rows.as_ptr();
    // SAFETY: the caller has the instructions; all rows are as long as x, and the pointer moves along the first.
    unsafe {
        let mut lanes = [L::splat(0.0); COUNT];
        for x in whole {
            let x = L::load(x);
            for row in 0..COUNT {
                let m = L::load(&*rows.add(n.wrapping_mul(row)).cast());
                // As many rows ahead: so many at a time are more than machines foresee.
                L::prefetch(rows.wrapping_add(n.wrapping_mul(row + COUNT)));
                lanes[row] = lanes[row].add(m.multiply(x));
            }
            rows = rows.add(LANES);
        }
        if !rest.is_empty() {
            let x = L::load_part(rest, 0.0);
            for row in 0..COUNT {
                let m = core::slice::from_raw_parts(rows.add(n.wrapping_mul(row)), rest.len());
                lanes[row] = lanes[row].add(L::load_part(m, 0.0).multiply(x));
            }
        }
        lanes
    }
}

/// Writes y = M x + b of at most [`ROWS`] rows.
///
/// # Safety
/// The machine has the instructions of `L`.
#[inline(always)]
unsafe fn affine_rows<L: Lanes>(rows: &[f32], x: &[f32], b: &[f32], y: &mut [f32]) {
    // SAFETY: as the caller says.
    unsafe {
        let nothing = L::splat(0.0);
        let lanes = match y.len() {
            1 => {
                let [p] = products::<L, 1>(rows, x);
                [p, nothing, nothing, nothing]
            }
            2 => {
                let [p, q] = products::<L, 2>(rows, x);
                [p, q, nothing, nothing]
            }
            3 => {
                let [p, q, r] = products::<L, 3>(rows, x);
                [p, q, r, nothing]
            }
            _ => products::<L, ROWS>(rows, x),
        };
        // Biases are added before the sums are written: what was written in pieces is long in coming back whole.
        let mut sums = L::sums(lanes);
        sums.iter_mut().zip(b).for_each(|(sum, b)| *sum += b);
        y.iter_mut().zip(sums).for_each(|(y, sum)| *y = sum);
    }
}

widest! {
    /// Writes y = M x + b, M row by row; no b is one of 0.
    fn affine<L>(matrix: &[f32], x: &[f32], b: &[f32], y: &mut [f32]) {
        let (mut matrix, mut b, mut y) = (matrix, b, y);
        while !y.is_empty() {
            let count = y.len().min(ROWS);
            let (rows, others) = matrix.split_at(count * x.len());
            let (biases, more) = b.split_at(b.len().min(count));
            let (sums, rest) = y.split_at_mut(count);
            affine_rows::<L>(rows, x, biases, sums);
            (matrix, b, y) = (others, more, rest);
        }
    }
}

widest! {
    /// M −= s xᵀ, M row by row; rows of an s of 0 are not looked at.
    fn subtract_outer<L>(s: &[f32], x: &[f32], matrix: &mut [f32]) {
        let (whole, rest) = x.as_chunks::<LANES>();
        for (row, s) in matrix.chunks_exact_mut(x.len()).zip(s) {
            if *s == 0.0 {
                continue;
            }
            let s = L::splat(*s);
            let (row_whole, row_rest) = row.as_chunks_mut::<LANES>();
            for (y, x) in row_whole.iter_mut().zip(whole) {
                L::load(y).subtract(s.multiply(L::load(x))).store(y);
            }
            if !rest.is_empty() {
                let y = L::load_part(row_rest, 0.0);
                y.subtract(s.multiply(L::load_part(rest, 0.0))).store_part(row_rest);
            }
        }
    }
}

widest! {
    /// Gives Σ a_i b_i.
    fn find_dot<L>(a: &[f32], b: &[f32], sum: &mut f32) {
        let [lanes] = products::<L, 1>(a, b);
        *sum = lanes.sum();
    }
}

widest! {
    /// Gives Σ (a_i − b_i)².
    fn find_squared_distance<L>(a: &[f32], b: &[f32], sum: &mut f32) {
        let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
        let mut lanes = L::splat(0.0);
        for (a, b) in a.iter().zip(b) {
            let difference = L::load(a).subtract(L::load(b));
            lanes = lanes.add(difference.multiply(difference));
        }
        let difference = L::load_part(a_rest, 0.0).subtract(L::load_part(b_rest, 0.0));
        *sum = lanes.add(difference.multiply(difference)).sum();
    }
}

/// Σ a_i b_i of slices of one length.
pub(crate) fn dot(a: &[f32], b: &[f32]) -> f32 {
    debug_assert_eq!(a.len(), b.len());
    let mut sum = 0.0;
    find_dot(a, b, &mut sum);
    sum
}

/// Σ (a_i − b_i)² of slices of one length.
pub(crate) fn squared_distance(a: &[f32], b: &[f32]) -> f32 {
    debug_assert_eq!(a.len(), b.len());
    let mut sum = 0.0;
    find_squared_distance(a, b, &mut sum);
    sum
}

/// e^x below this is 0.
const LOWEST: f32 = -85.0;

/// e^x for x ≤ 0, and 0 where that is below 1e-37; one unit in the last place off at most.
///
/// # Safety
/// The machine has the instructions of `L`.
#[inline(always)]
unsafe fn exp<L: Lanes>(x: L) -> L {
    /// Where it is added, halves are rounded away: what is left in the last bits is a whole number.
    const ROUND: f32 = 12_582_912.0;
    /// ln 2 in two parts; a whole number of the first is exact.
    const LN_2: [f32; 2] = [0.693_359_4, -0.000_212_194_44];
    // SAFETY: as the caller says.
    unsafe {
        let rounded = x.multiply(L::splat(core::f32::consts::LOG2_E)).add(L::splat(ROUND));
        let n = rounded.subtract(L::splat(ROUND));
        let r = x.subtract(n.multiply(L::splat(LN_2[0])));
        let r = r.subtract(n.multiply(L::splat(LN_2[1])));
        // The series up to r⁷: |r| ≤ ln 2 / 2.
        let mut series = L::splat(1.0 / 5040.0);
        for inverse in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5] {
            series = series.multiply(r).add(L::splat(inverse));
        }
        let value = series.multiply(r.multiply(r)).add(r).add(L::splat(1.0));
        x.where_below(LOWEST, L::splat(0.0), value.multiply(rounded.power_of_two()))
    }
}

/// Logits z · scale + l from a place on; no offsets l are offsets of 0.
///
/// # Safety
/// The machine has the instructions of `L`.
#[inline(always)]
unsafe fn shifted<L: Lanes>(z: &[f32], scale: f32, offsets: &[f32], at: usize, missing: f32) -> L {
    // SAFETY: as the caller says. No closure: one that is not inlined would call every instruction.
    unsafe {
        let scaled = L::load_part(&z[at..], missing).multiply(L::splat(scale));
        scaled.add(offset(offsets, at))
    }
}

/// Offsets from a place on; 0 where there are none.
///
/// # Safety
/// The machine has the instructions of `L`.
#[inline(always)]
unsafe fn offset<L: Lanes>(offsets: &[f32], at: usize) -> L {
    // SAFETY: as the caller says.
    unsafe {
        match offsets {
            [] => L::splat(0.0),
            offsets => L::load_part(&offsets[at..], 0.0),
        }
    }
}

widest! {
    /// Turns logits into probabilities in place.
    fn softmax<L>(z: &mut [f32]) {
        let mut most = L::splat(f32::NEG_INFINITY);
        for at in (0..z.len()).step_by(LANES) {
            most = most.or_larger(L::load_part(&z[at..], f32::NEG_INFINITY));
        }
        let most = L::splat(most.largest());
        let mut sum = L::splat(0.0);
        for at in (0..z.len()).step_by(LANES) {
            // What is missing is e^−∞ = 0.
            let e = exp(L::load_part(&z[at..], f32::NEG_INFINITY).subtract(most));
            e.store_part(&mut z[at..]);
            sum = sum.add(e);
        }
        let inverse = 1.0 / sum.sum();
        z.iter_mut().for_each(|z| *z *= inverse);
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

/// What [`top`] says of logits.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Top {
    /// The class of the largest probability; the first of several.
    pub(crate) class: usize,
    /// What it is believed with.
    pub(crate) confidence: f32,
    /// The largest probability of another class.
    pub(crate) second: f32,
    /// Of the probabilities, in nats.
    pub(crate) entropy: f32,
}

/// Writes p = softmax(z · scale + offsets); gives the class c of the largest, and the confidence.
///
/// That is p_c where c is also the class of the largest logit, and otherwise p_c (q_c / max q)^β with
/// q = softmax(z · scale): where the offsets overrule the logits, both must be believed.
pub(crate) fn top(z: &[f32], scale: f32, shift: Option<Shift<'_>>, p: &mut [f32]) -> Top {
    debug_assert_eq!(z.len(), p.len());
    let mut top = Top::default();
    let Shift { offsets, doubt } = shift.unwrap_or(Shift {
        offsets: &[],
        doubt: 0.0,
    });
    find_top(z, scale, offsets, doubt, p, &mut top);
    top
}

widest! {
    /// Gives what [`top`] says; no offsets are offsets of 0.
    fn find_top<L>(z: &[f32], scale: f32, offsets: &[f32], doubt: f32, p: &mut [f32], top: &mut Top) {
        let nothing = L::splat(f32::NEG_INFINITY);
        let (mut evident, mut most) = (nothing, nothing);
        for at in (0..z.len()).step_by(LANES) {
            let scaled = L::load_part(&z[at..], f32::NEG_INFINITY).multiply(L::splat(scale));
            evident = evident.or_larger(scaled);
            most = most.or_larger(scaled.add(offset(offsets, at)));
        }
        let (evident, most) = (evident.largest(), most.largest());
        let mut class = 0;
        for at in (0..z.len()).step_by(LANES) {
            let found = shifted::<L>(z, scale, offsets, at, f32::NAN).equal(L::splat(most));
            if found != 0 {
                class = at + found.trailing_zeros() as usize;
                break;
            }
        }
        // The last vector is not written before it is a probability: reading it back at once would be waited for.
        let (mut last, mut sum, mut weighted, mut others) = (L::splat(0.0), L::splat(0.0), L::splat(0.0), nothing);
        for at in (0..z.len()).step_by(LANES) {
            // What is missing is e^−∞ = 0.
            let below = shifted::<L>(z, scale, offsets, at, f32::NEG_INFINITY).subtract(L::splat(most));
            let e = exp(below);
            if at + LANES < z.len() {
                e.store_part(&mut p[at..]);
            }
            last = e;
            sum = sum.add(e);
            // What adds nothing may be infinitely far below.
            weighted = weighted.add(e.multiply(below.where_below(LOWEST, L::splat(LOWEST), below)));
            others = others.or_larger(e.replace(class.wrapping_sub(at), f32::NEG_INFINITY));
        }
        let zeros = L::splat(0.0);
        let [sum, weighted, ..] = L::sums([sum, weighted, zeros, zeros]);
        let inverse = 1.0 / sum;
        for at in (0..z.len()).step_by(LANES) {
            let e = if at + LANES < z.len() { L::load_part(&p[at..], 0.0) } else { last };
            e.multiply(L::splat(inverse)).store_part(&mut p[at..]);
        }
        let own = z[class] * scale;
        let discount = if own == evident {
            1.0
        } else {
            libm::expf(doubt * (own - evident))
        };
        *top = Top {
            class,
            // e^0 / S.
            confidence: inverse * discount,
            second: others.largest() * inverse,
            // −Σ p ln p with p = e^x / S is ln S − Σ e^x x / S. Rounding may leave a little less than nothing.
            entropy: (libm::logf(sum) - weighted * inverse).max(0.0),
        };
    }
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

    /// e^x of one number.
    fn exp(x: f32) -> f32 {
        let mut lanes = [0.0; LANES];
        // SAFETY: every machine has these instructions.
        unsafe { super::exp(Base::splat(x)).store(&mut lanes) };
        lanes[0]
    }

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
            affine(&matrix, &x, &[], &mut y);
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
        let mut p = [0.0; 3];
        let Top { class, confidence, .. } = top(&z, 1.0, shift(2.0), &mut p);
        assert_eq!(class, 1);
        assert!((confidence - p[1] * libm::expf(-1.0)).abs() < 1e-6, "{confidence}");
        assert_eq!(top(&z, 1.0, shift(0.0), &mut p).confidence, p[1]);
        // Here they agree with the logits.
        let Top { class, confidence, .. } = top(&[0.0, 0.5, -1.0], 1.0, shift(2.0), &mut p);
        assert_eq!((class, confidence), (1, p[1]));
        assert_eq!(top(&z, 2.0, None, &mut p).class, 0);
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
                let mut p = alloc::vec![0.0; n];
                let mut apart = z.clone();
                apart[place] = 4.0;
                let found = top(&apart, 2.0, None, &mut p);
                let mut others = p.clone();
                others.remove(place);
                assert_eq!(found.second, others.into_iter().fold(0.0, f32::max));
                let found = top(&z, 2.0, None, &mut p);
                assert_eq!((found.class, found.confidence), (place, p[place]));
                assert_eq!(
                    found.second,
                    if place + 1 < n {
                        p[n - 1]
                    } else {
                        p[..n - 1].iter().copied().fold(0.0, f32::max)
                    }
                );
                let offsets = alloc::vec![0.5; n];
                let shift = Some(Shift {
                    offsets: &offsets,
                    doubt: 1.0,
                });
                assert_eq!(top(&z, 2.0, shift, &mut p).class, place);
            }
        }
    }

    #[test]
    fn entropy_is_zero_when_certain_ln_k_when_uniform_and_right_in_between() {
        let entropy = |z: &mut [f32]| {
            let logits = z.to_vec();
            top(&logits, 1.0, None, z).entropy
        };
        assert_eq!(entropy(&mut [900.0, 0.0, -1e30]), 0.0);
        assert!((entropy(&mut [7.0; 4]) - 4f32.ln()).abs() < 1e-6);
        let mut p: Vec<f32> = (0..100).map(|i| (i as f32 * 0.7).sin() * 4.0).collect();
        let entropy = entropy(&mut p);
        let exact: f64 = p.iter().map(|p| -f64::from(*p) * f64::from(*p).ln()).sum();
        assert!((f64::from(entropy) - exact).abs() < 2e-6, "{entropy} for {exact}");
    }

    extern crate std;
}
