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

/// Numbers that are fetched ahead: several rows at a time are more than machines foresee. Four of 256.
const AHEAD: usize = 1024;

/// Σ m_i x_i of rows m that begin at these places, in lanes.
///
/// # Safety
/// The machine has the instructions of `L`; rows are as long as x.
#[inline(always)]
#[allow(clippy::needless_range_loop)] // counted loops of constant length are unrolled, and sums stay in registers
unsafe fn products<L: Lanes, const COUNT: usize>(mut rows: [*const f32; COUNT], x: &[f32]) -> [L; COUNT] {
    let (whole, rest) = x.as_chunks::<LANES>();
    // SAFETY: the caller has the instructions; all rows are as long as x, and pointers move along them.
    unsafe {
        let mut lanes = [L::splat(0.0); COUNT];
        for x in whole {
            let x = L::load(x);
            for row in 0..COUNT {
                let m = L::load(&*rows[row].cast());
                L::prefetch(rows[row].wrapping_add(AHEAD));
                lanes[row] = lanes[row].add(m.multiply(x));
                rows[row] = rows[row].add(LANES);
            }
        }
        if !rest.is_empty() {
            let x = L::load_part(rest, 0.0);
            for row in 0..COUNT {
                let m = core::slice::from_raw_parts(rows[row], rest.len());
                lanes[row] = lanes[row].add(L::load_part(m, 0.0).multiply(x));
            }
        }
        lanes
    }
}

/// M x of [`ROWS`] rows from one on. Where there are fewer the last is repeated: that costs less than to tell.
///
/// # Safety
/// The machine has the instructions of `L`, and there are rows as long as x.
#[inline(always)]
unsafe fn product_of_four<L: Lanes>(matrix: &[f32], count: usize, x: &[f32], first: usize) -> L::Four {
    // SAFETY: as the caller says; no row begins behind the last.
    unsafe {
        if first >= count {
            return L::sums([L::splat(0.0); ROWS]);
        }
        let n = x.len();
        let [second, third, fourth] = [1, 2, 3].map(|row| if first + row < count { n } else { 0 });
        let row = matrix.as_ptr().add(n * first);
        let rows = [
            row,
            row.add(second),
            row.add(second + third),
            row.add(second + third + fourth),
        ];
        L::sums(products::<L, ROWS>(rows, x))
    }
}

/// M x + b of the first rows, at most [`LANES`]; no b is one of 0, and other lanes are anything.
///
/// # Safety
/// The machine has the instructions of `L`.
#[inline(always)]
unsafe fn affine_lanes<L: Lanes>(matrix: &[f32], count: usize, x: &[f32], b: &[f32]) -> L {
    assert!(matrix.len() >= count * x.len(), "there are as many rows");
    // SAFETY: the caller has the instructions; rows were checked.
    unsafe {
        // In registers from the sums on: what is written in pieces is long in coming back whole.
        let y = L::of_fours([
            product_of_four::<L>(matrix, count, x, 0),
            product_of_four::<L>(matrix, count, x, ROWS),
            product_of_four::<L>(matrix, count, x, 2 * ROWS),
            product_of_four::<L>(matrix, count, x, 3 * ROWS),
        ]);
        match b {
            [] => y,
            b => y.add(L::load_part(b, 0.0)),
        }
    }
}

/// Writes y = M x + b, M row by row; no b is one of 0. Gives the last lanes of y, where those beyond it are anything.
///
/// # Safety
/// The machine has the instructions of `L`.
#[inline(always)]
unsafe fn affine_all<L: Lanes>(matrix: &[f32], x: &[f32], b: &[f32], y: &mut [f32]) -> L {
    // SAFETY: the caller has the instructions.
    unsafe {
        let mut last = L::splat(0.0);
        for (y, at) in y.chunks_mut(LANES).zip((0..).step_by(LANES)) {
            let b = if b.is_empty() { b } else { &b[at..] };
            last = affine_lanes(&matrix[at * x.len()..], y.len(), x, b);
            last.store_part(y);
        }
        last
    }
}

widest! {
    /// Writes y = M x + b, M row by row; no b is one of 0.
    fn affine<L>(matrix: &[f32], x: &[f32], b: &[f32], y: &mut [f32]) {
        affine_all::<L>(matrix, x, b, y);
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
        assert!(a.len() >= b.len(), "slices are of one length");
        let [lanes] = products::<L, 1>([a.as_ptr()], b);
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
        let last = L::load_part(&z[last_lanes(z.len())..], 0.0);
        *top = top_of::<L>(z, last, scale, offsets, doubt, p);
    }
}

/// Where the last lanes of so many numbers begin.
fn last_lanes(numbers: usize) -> usize {
    numbers.saturating_sub(1) / LANES * LANES
}

/// Sums over e^(x − max x) of shifted logits x.
#[derive(Clone, Copy)]
struct Tally<L> {
    /// max x.
    most: L,
    /// Of e^(x − max x), and of it times x − max x.
    sum: L,
    weighted: L,
    /// Largest of the other classes.
    others: L,
}

impl<L: Lanes> Tally<L> {
    /// Adds shifted logits, among which that of the largest may be in a lane; gives e^(x − max x).
    ///
    /// # Safety
    /// The machine has the instructions of `L`.
    #[inline(always)]
    unsafe fn add(&mut self, shifted: L, largest: usize) -> L {
        // SAFETY: as the caller says.
        unsafe {
            let below = shifted.subtract(self.most);
            let e = exp(below);
            self.sum = self.sum.add(e);
            // What adds nothing may be infinitely far below.
            let finite = below.where_below(LOWEST, L::splat(LOWEST), below);
            self.weighted = self.weighted.add(e.multiply(finite));
            self.others = self.others.or_larger(e.replace(largest, f32::NEG_INFINITY));
            e
        }
    }
}

/// What [`find_top`] gives, of logits whose last lanes are at hand: read back at once they would be waited for. Lanes
/// beyond the logits may be anything.
///
/// # Safety
/// The machine has the instructions of `L`.
#[inline(always)]
unsafe fn top_of<L: Lanes>(z: &[f32], last: L, scale: f32, offsets: &[f32], doubt: f32, p: &mut [f32]) -> Top {
    let last_at = last_lanes(z.len());
    let (whole, _) = z[..last_at].as_chunks::<LANES>();
    // SAFETY: the caller has the instructions. No closures: those that are not inlined would call every instruction.
    unsafe {
        let factor = L::splat(scale);
        // What is missing is e^−∞ = 0.
        let last = last.multiply(factor).keep(z.len() - last_at, f32::NEG_INFINITY);
        let last_shifted = last.add(offset(offsets, last_at));
        // Begun so that what is no number never counts as the largest.
        let nothing = L::splat(f32::NEG_INFINITY);
        let (mut evident, mut most) = (nothing.or_larger(last), nothing.or_larger(last_shifted));
        for (i, z) in whole.iter().enumerate() {
            let scaled = L::load(z).multiply(factor);
            evident = evident.or_larger(scaled);
            most = most.or_larger(scaled.add(offset(offsets, i * LANES)));
        }
        let (evident, most) = (evident.largest(), L::splat(most.largest()));
        let mut class = last_at + last_shifted.equal(most).trailing_zeros() as usize;
        for (i, z) in whole.iter().enumerate() {
            let shifted = L::load(z).multiply(factor).add(offset(offsets, i * LANES));
            let found = shifted.equal(most);
            if found != 0 {
                class = i * LANES + found.trailing_zeros() as usize;
                break;
            }
        }
        // Where no logit is a number, the first class is as good as any.
        let class = if class < z.len() { class } else { 0 };
        let zeros = L::splat(0.0);
        let mut tally = Tally {
            most,
            sum: zeros,
            weighted: zeros,
            others: nothing,
        };
        let (p_whole, p_last) = p.split_at_mut(last_at);
        let (p_whole, _) = p_whole.as_chunks_mut::<LANES>();
        for (i, (z, p)) in whole.iter().zip(&mut *p_whole).enumerate() {
            let shifted = L::load(z).multiply(factor).add(offset(offsets, i * LANES));
            tally.add(shifted, class.wrapping_sub(i * LANES)).store(p);
        }
        let e = tally.add(last_shifted, class.wrapping_sub(last_at));
        let [sum, weighted, ..] = L::numbers(L::sums([tally.sum, tally.weighted, zeros, zeros]));
        let inverse = 1.0 / sum;
        for p in p_whole {
            L::load(p).multiply(L::splat(inverse)).store(p);
        }
        e.multiply(L::splat(inverse)).store_part(p_last);
        let own = z[class] * scale;
        let discount = if own == evident {
            1.0
        } else {
            libm::expf(doubt * (own - evident))
        };
        Top {
            class,
            // e^0 / S.
            confidence: inverse * discount,
            second: tally.others.largest() * inverse,
            // −Σ p ln p with p = e^x / S is ln S − Σ e^x x / S. Rounding may leave a little less than nothing.
            entropy: (libm::logf(sum) - weighted * inverse).max(0.0),
        }
    }
}

/// What an exit's head is, and what its logits are read with.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exit<'a> {
    /// W ∈ R^{K×C}, row by row.
    pub(crate) weights: &'a [f32],
    /// b.
    pub(crate) bias: &'a [f32],
    /// As for [`top`].
    pub(crate) scale: f32,
    /// As for [`top`].
    pub(crate) shift: Option<Shift<'a>>,
}

/// What is kept of a frame at an exit.
#[derive(Debug)]
pub(crate) struct Kept<'a> {
    /// C numbers each.
    pub(crate) features: &'a mut [f32],
    /// Those of the frame before.
    pub(crate) previous: &'a [f32],
    /// K numbers each.
    pub(crate) logits: &'a mut [f32],
    pub(crate) probabilities: &'a mut [f32],
}

/// What an exit sees.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    /// ‖u‖².
    pub(crate) energy: f32,
    /// ‖u − u′‖².
    pub(crate) change: f32,
    /// Of W u + b.
    pub(crate) top: Top,
}

/// Keeps features u, W u + b and what [`top`] makes of them, all in one go. `None` where ‖u‖² is beyond a bound, or no
/// number; then only features have been kept.
pub(crate) fn look(exit: &Exit<'_>, u: &[f32], most_energy: f32, kept: &mut Kept<'_>) -> Option<Seen> {
    debug_assert_eq!((u.len(), u.len()), (kept.features.len(), kept.previous.len()));
    debug_assert_eq!(kept.logits.len(), kept.probabilities.len());
    let mut seen = None;
    find_seen(exit, u, most_energy, kept, &mut seen);
    seen
}

widest! {
    /// Gives what [`look`] says.
    fn find_seen<L>(exit: &Exit<'_>, u: &[f32], most_energy: f32, kept: &mut Kept<'_>, seen: &mut Option<Seen>) {
        let zeros = L::splat(0.0);
        let (mut energy, mut change) = (zeros, zeros);
        let (whole, rest) = u.as_chunks::<LANES>();
        let (before, before_rest) = kept.previous.as_chunks::<LANES>();
        let (copies, copy_rest) = kept.features.as_chunks_mut::<LANES>();
        for ((u, before), copy) in whole.iter().zip(before).zip(copies) {
            let u = L::load(u);
            let difference = u.subtract(L::load(before));
            u.store(copy);
            energy = energy.add(u.multiply(u));
            change = change.add(difference.multiply(difference));
        }
        if !rest.is_empty() {
            let u = L::load_part(rest, 0.0);
            let difference = u.subtract(L::load_part(before_rest, 0.0));
            u.store_part(copy_rest);
            energy = energy.add(u.multiply(u));
            change = change.add(difference.multiply(difference));
        }
        let [energy, change, ..] = L::numbers(L::sums([energy, change, zeros, zeros]));
        if energy <= most_energy {
            let (offsets, doubt) = exit.shift.map_or((&[][..], 0.0), |shift| (shift.offsets, shift.doubt));
            let last = affine_all::<L>(exit.weights, u, exit.bias, kept.logits);
            let top = top_of(kept.logits, last, exit.scale, offsets, doubt, kept.probabilities);
            *seen = Some(Seen { energy, change, top });
        }
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
    fn one_look_sees_what_its_parts_do() {
        let mut random = crate::SplitMix64(9);
        for (classes, n) in [(2, 1), (5, 24), (10, 33), (16, 16), (17, 70), (100, 64)] {
            let mut numbers = |count: usize| -> Vec<f32> {
                let number = |_| (random.next() >> 40) as f32 / 8_388_608.0 - 1.0;
                (0..count).map(number).collect()
            };
            let (weights, bias, offsets) = (numbers(classes * n), numbers(classes), numbers(classes));
            let (u, previous) = (numbers(n), numbers(n));
            for shift in [
                None,
                Some(Shift {
                    offsets: &offsets,
                    doubt: 2.0,
                }),
            ] {
                let exit = Exit {
                    weights: &weights,
                    bias: &bias,
                    scale: 1.5,
                    shift,
                };
                let (mut features, mut z) = (alloc::vec![0.0; n], alloc::vec![0.0; classes]);
                let mut p = z.clone();
                let mut kept = Kept {
                    features: &mut features,
                    previous: &previous,
                    logits: &mut z,
                    probabilities: &mut p,
                };
                let seen = look(&exit, &u, f32::MAX, &mut kept).unwrap();
                assert!(look(&exit, &u, seen.energy * 0.99, &mut kept).is_none());
                let (mut expected_z, mut expected_p) = (z.clone(), p.clone());
                affine(&weights, &u, &bias, &mut expected_z);
                let expected = top(&expected_z, 1.5, shift, &mut expected_p);
                assert_eq!((&features, &z, &p), (&u, &expected_z, &expected_p), "{classes}x{n}");
                assert_eq!(seen.top, expected);
                assert_eq!(
                    (seen.energy, seen.change),
                    (dot(&u, &u), squared_distance(&u, &previous))
                );
            }
        }
    }

    #[test]
    fn logits_that_are_no_numbers_never_hide_others() {
        for classes in [3, 10, 16, 17, 40] {
            for best in [0, classes / 2, classes - 2] {
                let mut z: Vec<f32> = (0..classes).map(|i| if i == best { 3.0 } else { -1.0 }).collect();
                z[classes - 1] = f32::NAN;
                let mut p = z.clone();
                assert_eq!(top(&z, 1.0, None, &mut p).class, best, "{classes}");
                assert_eq!(top(&alloc::vec![f32::NAN; classes], 1.0, None, &mut p).class, 0);
            }
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
