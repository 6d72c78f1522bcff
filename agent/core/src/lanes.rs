//! Sixteen numbers side by side, and one order in which they are added up, on every machine.
//!
//! Written out for each machine: what a compiler makes by itself of arrays of sixteen numbers is slow where lanes come
//! together. The portable one is what the others are held to.

/// Numbers side by side: the widest vector of `f32` there is.
pub(crate) const LANES: usize = 16;
/// Vectors that are added up at a time.
pub(crate) const ROWS: usize = 4;

/// Sixteen numbers. Every operation gives the same bits on every machine.
///
/// # Safety
/// Every function may be called where the machine has the instructions of the type, and nowhere else.
pub(crate) trait Lanes: Copy {
    /// Four numbers side by side.
    type Four: Copy;

    unsafe fn splat(x: f32) -> Self;
    unsafe fn load(from: &[f32; LANES]) -> Self;
    unsafe fn store(self, to: &mut [f32; LANES]);
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn subtract(self, other: Self) -> Self;
    unsafe fn multiply(self, other: Self) -> Self;
    /// In each lane the other number where it is larger.
    unsafe fn or_larger(self, other: Self) -> Self;
    /// A bit for each lane where both are equal, the first lane's is the lowest.
    unsafe fn equal(self, other: Self) -> u32;
    /// `then` where a lane is below a limit, otherwise `or`.
    unsafe fn where_below(self, limit: f32, then: Self, or: Self) -> Self;
    /// 2ⁿ, where the lowest bits of a number are n.
    unsafe fn power_of_two(self) -> Self;
    /// Another number in this lane, if there is such a lane.
    unsafe fn replace(self, lane: usize, by: f32) -> Self;
    /// Adds up the lanes of each: lane `i` takes `i + 8`, then `i + 4`, `i + 2` and `i + 1`.
    unsafe fn sums(rows: [Self; ROWS]) -> Self::Four;
    unsafe fn numbers(four: Self::Four) -> [f32; ROWS];
    unsafe fn of_fours(fours: [Self::Four; LANES / ROWS]) -> Self;
    /// The first so many lanes; the others are replaced.
    unsafe fn keep(self, count: usize, others: f32) -> Self;

    /// Has what lies there brought into the nearest cache, where a machine can be asked to. Any address will do.
    #[inline(always)]
    unsafe fn prefetch(_at: *const f32) {}

    /// As many of the numbers as there are, and what the missing ones are to be.
    #[inline(always)]
    unsafe fn load_part(from: &[f32], missing: f32) -> Self {
        // SAFETY: as the caller says.
        unsafe {
            if let Some(whole) = from.first_chunk() {
                return Self::load(whole);
            }
            let mut lanes = [missing; LANES];
            lanes[..from.len()].copy_from_slice(from);
            Self::load(&lanes)
        }
    }

    /// As many of the numbers as there is room for.
    #[inline(always)]
    unsafe fn store_part(self, to: &mut [f32]) {
        // SAFETY: as the caller says.
        unsafe {
            if let Some(whole) = to.first_chunk_mut() {
                return self.store(whole);
            }
            let mut lanes = [0.0; LANES];
            self.store(&mut lanes);
            to.copy_from_slice(&lanes[..to.len()]);
        }
    }

    /// Adds up the lanes.
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        // SAFETY: as the caller says.
        unsafe {
            let nothing = Self::splat(0.0);
            Self::numbers(Self::sums([self, nothing, nothing, nothing]))[0]
        }
    }

    /// The largest of the lanes.
    #[inline(always)]
    unsafe fn largest(self) -> f32 {
        let mut lanes = [0.0; LANES];
        // SAFETY: as the caller says.
        unsafe { self.store(&mut lanes) };
        lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }
}

/// Implements [`Lanes`] by intrinsics.
#[cfg(any(
    all(target_arch = "x86_64", feature = "std"),
    all(target_arch = "aarch64", target_feature = "neon")
))]
macro_rules! lanes {
    ($lanes:ty, $four:ty { $(fn $name:ident($($arguments:tt)*) $(-> $result:ty)? $body:block)* }) => {
        impl Lanes for $lanes {
            type Four = $four;

            $(
                #[inline(always)]
                unsafe fn $name($($arguments)*) $(-> $result)? {
                    // SAFETY: the caller has the instructions; references are to as many numbers as are read or
                    // written.
                    #[allow(unused_unsafe, reason = "what needs no pointer is safe where every machine has it")]
                    unsafe { $body }
                }
            )*
        }
    };
}

#[cfg(not(all(target_arch = "aarch64", target_feature = "neon")))]
pub(crate) use Portable as Base;
#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
pub(crate) use aarch64::Neon as Base;
#[cfg(all(target_arch = "x86_64", feature = "std"))]
pub(crate) use x86_64::{Avx2, Avx512};

/// Any machine's.
#[cfg(any(test, not(all(target_arch = "aarch64", target_feature = "neon"))))]
#[derive(Clone, Copy)]
pub(crate) struct Portable([f32; LANES]);

#[cfg(any(test, not(all(target_arch = "aarch64", target_feature = "neon"))))]
impl Portable {
    #[inline(always)]
    fn each(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(core::array::from_fn(|i| f(self.0[i], other.0[i])))
    }
}

#[cfg(any(test, not(all(target_arch = "aarch64", target_feature = "neon"))))]
impl Lanes for Portable {
    type Four = [f32; ROWS];

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; LANES])
    }

    #[inline(always)]
    unsafe fn load(from: &[f32; LANES]) -> Self {
        Self(*from)
    }

    #[inline(always)]
    unsafe fn store(self, to: &mut [f32; LANES]) {
        *to = self.0;
    }

    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        self.each(other, |a, b| a + b)
    }

    #[inline(always)]
    unsafe fn subtract(self, other: Self) -> Self {
        self.each(other, |a, b| a - b)
    }

    #[inline(always)]
    unsafe fn multiply(self, other: Self) -> Self {
        self.each(other, |a, b| a * b)
    }

    #[inline(always)]
    unsafe fn or_larger(self, other: Self) -> Self {
        self.each(other, |a, b| if b > a { b } else { a })
    }

    #[inline(always)]
    unsafe fn equal(self, other: Self) -> u32 {
        (0..LANES).fold(0, |bits, i| bits | u32::from(self.0[i] == other.0[i]) << i)
    }

    #[inline(always)]
    unsafe fn where_below(self, limit: f32, then: Self, or: Self) -> Self {
        let lane = |i: usize| if self.0[i] < limit { then.0[i] } else { or.0[i] };
        Self(core::array::from_fn(lane))
    }

    #[inline(always)]
    unsafe fn replace(mut self, lane: usize, by: f32) -> Self {
        if let Some(number) = self.0.get_mut(lane) {
            *number = by;
        }
        self
    }

    #[inline(always)]
    unsafe fn power_of_two(self) -> Self {
        Self(
            self.0
                .map(|x| f32::from_bits((x.to_bits() << 23).wrapping_add(1f32.to_bits()))),
        )
    }

    #[inline(always)]
    unsafe fn sums(rows: [Self; ROWS]) -> [f32; ROWS] {
        rows.map(|Self(mut lanes)| {
            let mut width = LANES / 2;
            while width > 0 {
                for i in 0..width {
                    lanes[i] += lanes[i + width];
                }
                width /= 2;
            }
            lanes[0]
        })
    }

    #[inline(always)]
    unsafe fn numbers(four: [f32; ROWS]) -> [f32; ROWS] {
        four
    }

    #[inline(always)]
    unsafe fn of_fours(fours: [[f32; ROWS]; LANES / ROWS]) -> Self {
        Self(core::array::from_fn(|i| fours[i / ROWS][i % ROWS]))
    }

    #[inline(always)]
    unsafe fn keep(self, count: usize, others: f32) -> Self {
        Self(core::array::from_fn(|i| if i < count { self.0[i] } else { others }))
    }
}

#[cfg(all(target_arch = "x86_64", feature = "std"))]
mod x86_64 {
    use core::arch::x86_64::*;

    use super::{LANES, Lanes, ROWS};

    /// One vector.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx512(__m512);

    lanes! { Avx512, __m128 {
        fn splat(x: f32) -> Self { Self(_mm512_set1_ps(x)) }
        fn prefetch(at: *const f32) { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
        fn load(from: &[f32; LANES]) -> Self { Self(_mm512_loadu_ps(from.as_ptr())) }
        fn store(self, to: &mut [f32; LANES]) { _mm512_storeu_ps(to.as_mut_ptr(), self.0) }
        fn add(self, other: Self) -> Self { Self(_mm512_add_ps(self.0, other.0)) }
        fn subtract(self, other: Self) -> Self { Self(_mm512_sub_ps(self.0, other.0)) }
        fn multiply(self, other: Self) -> Self { Self(_mm512_mul_ps(self.0, other.0)) }
        // The instruction gives its second number unless the first is larger.
        fn or_larger(self, other: Self) -> Self { Self(_mm512_max_ps(other.0, self.0)) }
        fn equal(self, other: Self) -> u32 { u32::from(_mm512_cmp_ps_mask::<_CMP_EQ_OQ>(self.0, other.0)) }
        fn where_below(self, limit: f32, then: Self, or: Self) -> Self {
            let below = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, _mm512_set1_ps(limit));
            Self(_mm512_mask_blend_ps(below, or.0, then.0))
        }
        fn power_of_two(self) -> Self {
            let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(self.0));
            let one = _mm512_castps_si512(_mm512_set1_ps(1.0));
            Self(_mm512_castsi512_ps(_mm512_add_epi32(exponent, one)))
        }
        fn sums(rows: [Self; ROWS]) -> __m128 {
            let [Self(a), Self(b), Self(c), Self(d)] = rows;
            let halves = |x, y| _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(x, y), _mm512_shuffle_f32x4::<0xee>(x, y));
            let (x, y) = (halves(a, b), halves(c, d));
            let quarters = _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(x, y), _mm512_shuffle_f32x4::<0xdd>(x, y));
            let upper = _mm512_extractf64x4_pd::<1>(_mm512_castps_pd(quarters));
            add_quarters(_mm512_castps512_ps256(quarters), _mm256_castpd_ps(upper))
        }
        fn numbers(four: __m128) -> [f32; ROWS] {
            let mut numbers = [0.0; ROWS];
            _mm_storeu_ps(numbers.as_mut_ptr(), four);
            numbers
        }
        fn of_fours(fours: [__m128; LANES / ROWS]) -> Self {
            let [a, b, c, d] = fours;
            let (low, high) = (_mm256_set_m128(b, a), _mm256_castps_pd(_mm256_set_m128(d, c)));
            let low = _mm512_castps_pd(_mm512_castps256_ps512(low));
            Self(_mm512_castpd_ps(_mm512_insertf64x4::<1>(low, high)))
        }
        fn keep(self, count: usize, others: f32) -> Self {
            Self(_mm512_mask_blend_ps(mask(count), _mm512_set1_ps(others), self.0))
        }
        // What a mask leaves out is neither read nor written.
        fn load_part(from: &[f32], missing: f32) -> Self {
            Self(_mm512_mask_loadu_ps(_mm512_set1_ps(missing), mask(from.len()), from.as_ptr()))
        }
        fn store_part(self, to: &mut [f32]) { _mm512_mask_storeu_ps(to.as_mut_ptr(), mask(to.len()), self.0) }
        fn largest(self) -> f32 { _mm512_reduce_max_ps(self.0) }
        fn replace(self, lane: usize, by: f32) -> Self {
            let lane = if lane < LANES { 1_u16 << lane } else { 0 };
            Self(_mm512_mask_blend_ps(lane, self.0, _mm512_set1_ps(by)))
        }
    } }

    /// The lanes that there are numbers for.
    #[inline(always)]
    fn mask(numbers: usize) -> u16 {
        ((1_u32 << numbers.min(LANES)) - 1) as u16
    }

    /// Two vectors.
    #[derive(Clone, Copy)]
    pub(crate) struct Avx2(__m256, __m256);

    lanes! { Avx2, __m128 {
        fn splat(x: f32) -> Self { Self(_mm256_set1_ps(x), _mm256_set1_ps(x)) }
        fn prefetch(at: *const f32) { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
        fn load(from: &[f32; LANES]) -> Self {
            Self(_mm256_loadu_ps(from.as_ptr()), _mm256_loadu_ps(from[8..].as_ptr()))
        }
        fn store(self, to: &mut [f32; LANES]) {
            _mm256_storeu_ps(to.as_mut_ptr(), self.0);
            _mm256_storeu_ps(to[8..].as_mut_ptr(), self.1);
        }
        fn add(self, other: Self) -> Self { Self(_mm256_add_ps(self.0, other.0), _mm256_add_ps(self.1, other.1)) }
        fn subtract(self, other: Self) -> Self { Self(_mm256_sub_ps(self.0, other.0), _mm256_sub_ps(self.1, other.1)) }
        fn multiply(self, other: Self) -> Self { Self(_mm256_mul_ps(self.0, other.0), _mm256_mul_ps(self.1, other.1)) }
        // The instruction gives its second number unless the first is larger.
        fn or_larger(self, other: Self) -> Self { Self(_mm256_max_ps(other.0, self.0), _mm256_max_ps(other.1, self.1)) }
        fn equal(self, other: Self) -> u32 {
            let mask = |x, y| _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_EQ_OQ>(x, y)) as u32;
            mask(self.0, other.0) | mask(self.1, other.1) << 8
        }
        fn where_below(self, limit: f32, then: Self, or: Self) -> Self {
            let choose =
                |x, then, or| _mm256_blendv_ps(or, then, _mm256_cmp_ps::<_CMP_LT_OQ>(x, _mm256_set1_ps(limit)));
            Self(choose(self.0, then.0, or.0), choose(self.1, then.1, or.1))
        }
        fn power_of_two(self) -> Self {
            let power = |x| {
                let exponent = _mm256_slli_epi32::<23>(_mm256_castps_si256(x));
                let one = _mm256_castps_si256(_mm256_set1_ps(1.0));
                _mm256_castsi256_ps(_mm256_add_epi32(exponent, one))
            };
            Self(power(self.0), power(self.1))
        }
        fn sums(rows: [Self; ROWS]) -> __m128 {
            let [a, b, c, d] = rows.map(|Self(x, y)| _mm256_add_ps(x, y));
            let quarters =
                |x, y| _mm256_add_ps(_mm256_permute2f128_ps::<0x20>(x, y), _mm256_permute2f128_ps::<0x31>(x, y));
            add_quarters(quarters(a, b), quarters(c, d))
        }
        fn numbers(four: __m128) -> [f32; ROWS] {
            let mut numbers = [0.0; ROWS];
            _mm_storeu_ps(numbers.as_mut_ptr(), four);
            numbers
        }
        fn of_fours(fours: [__m128; LANES / ROWS]) -> Self {
            let [a, b, c, d] = fours;
            Self(_mm256_set_m128(b, a), _mm256_set_m128(d, c))
        }
        fn keep(self, count: usize, others: f32) -> Self {
            let others = _mm256_set1_ps(others);
            let [low, high] = masks(count);
            let keep = |x, mask| _mm256_blendv_ps(others, x, _mm256_castsi256_ps(mask));
            Self(keep(self.0, low), keep(self.1, high))
        }
        // What a mask leaves out is not read.
        fn load_part(from: &[f32], missing: f32) -> Self {
            let [low, high] = masks(from.len());
            let high = _mm256_maskload_ps(from.as_ptr().wrapping_add(8), high);
            Self(_mm256_maskload_ps(from.as_ptr(), low), high).keep(from.len(), missing)
        }
        // By pieces: stores with masks take long on some machines.
        fn store_part(self, to: &mut [f32]) {
            match to.split_at_mut_checked(8) {
                Some((low, high)) => {
                    _mm256_storeu_ps(low.as_mut_ptr(), self.0);
                    match high.first_chunk_mut::<8>() {
                        Some(high) => _mm256_storeu_ps(high.as_mut_ptr(), self.1),
                        None => store_pieces(self.1, high),
                    }
                }
                None => store_pieces(self.0, to),
            }
        }
        fn largest(self) -> f32 {
            let eight = _mm256_max_ps(self.0, self.1);
            let four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps::<1>(eight));
            let two = _mm_max_ps(four, _mm_movehl_ps(four, four));
            _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps::<1>(two, two)))
        }
        fn replace(self, lane: usize, by: f32) -> Self {
            let (by, lane) = (_mm256_set1_ps(by), _mm256_set1_epi32(lane.min(LANES) as i32));
            let replace = |x, first| {
                let lanes = _mm256_add_epi32(_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), _mm256_set1_epi32(first));
                _mm256_blendv_ps(x, by, _mm256_castsi256_ps(_mm256_cmpeq_epi32(lanes, lane)))
            };
            Self(replace(self.0, 0), replace(self.1, 8))
        }
    } }

    /// The lanes that there are numbers for.
    ///
    /// # Safety
    /// The machine has AVX2.
    #[inline(always)]
    unsafe fn masks(numbers: usize) -> [__m256i; 2] {
        static MASKS: [i32; 2 * LANES] = {
            let mut masks = [0; 2 * LANES];
            let mut lane = 0;
            while lane < LANES {
                masks[lane] = -1;
                lane += 1;
            }
            masks
        };
        let masks = &MASKS[LANES - numbers.min(LANES)..];
        // SAFETY: the caller has the instructions; as many numbers follow as two vectors have.
        unsafe {
            [
                _mm256_loadu_si256(masks.as_ptr().cast()),
                _mm256_loadu_si256(masks[8..].as_ptr().cast()),
            ]
        }
    }

    /// As many of the numbers as there is room for, at most seven.
    ///
    /// # Safety
    /// The machine has AVX.
    #[inline(always)]
    unsafe fn store_pieces(eight: __m256, to: &mut [f32]) {
        debug_assert!(to.len() < 8);
        let mut at = to.as_mut_ptr();
        // SAFETY: the caller has the instructions; the pieces together are as long as the slice.
        unsafe {
            let mut left = _mm256_castps256_ps128(eight);
            if to.len() & 4 != 0 {
                _mm_storeu_ps(at, left);
                at = at.add(4);
                left = _mm256_extractf128_ps::<1>(eight);
            }
            if to.len() & 2 != 0 {
                _mm_storel_epi64(at.cast(), _mm_castps_si128(left));
                at = at.add(2);
                left = _mm_movehl_ps(left, left);
            }
            if to.len() & 1 != 0 {
                _mm_store_ss(at, left);
            }
        }
    }

    /// The last two steps, of four numbers of each row.
    ///
    /// # Safety
    /// The machine has AVX.
    #[inline(always)]
    unsafe fn add_quarters(ab: __m256, cd: __m256) -> __m128 {
        // SAFETY: the caller has the instructions.
        unsafe {
            // a a c c  b b d d, then a c a c  b d b d.
            let pairs = _mm256_add_ps(_mm256_shuffle_ps::<0x44>(ab, cd), _mm256_shuffle_ps::<0xee>(ab, cd));
            let sum = _mm256_add_ps(
                _mm256_shuffle_ps::<0x88>(pairs, pairs),
                _mm256_shuffle_ps::<0xdd>(pairs, pairs),
            );
            let (ac, bd) = (_mm256_castps256_ps128(sum), _mm256_extractf128_ps::<1>(sum));
            _mm_unpacklo_ps(ac, bd)
        }
    }
}

#[cfg(all(target_arch = "aarch64", target_feature = "neon"))]
mod aarch64 {
    use core::arch::aarch64::*;

    use super::{LANES, Lanes, ROWS};

    /// Four vectors.
    #[derive(Clone, Copy)]
    pub(crate) struct Neon([float32x4_t; 4]);

    /// Where each begins.
    const PARTS: [usize; 4] = [0, 4, 8, 12];

    impl Neon {
        #[inline(always)]
        fn each(self, other: Self, f: impl Fn(float32x4_t, float32x4_t) -> float32x4_t) -> Self {
            Self(core::array::from_fn(|i| f(self.0[i], other.0[i])))
        }
    }

    lanes! { Neon, float32x4_t {
        fn splat(x: f32) -> Self { Self([vdupq_n_f32(x); 4]) }
        fn load(from: &[f32; LANES]) -> Self { Self(PARTS.map(|at| vld1q_f32(from[at..].as_ptr()))) }
        fn store(self, to: &mut [f32; LANES]) {
            for (at, part) in PARTS.into_iter().zip(self.0) {
                vst1q_f32(to[at..].as_mut_ptr(), part);
            }
        }
        fn add(self, other: Self) -> Self { self.each(other, |a, b| vaddq_f32(a, b)) }
        fn subtract(self, other: Self) -> Self { self.each(other, |a, b| vsubq_f32(a, b)) }
        fn multiply(self, other: Self) -> Self { self.each(other, |a, b| vmulq_f32(a, b)) }
        fn or_larger(self, other: Self) -> Self { self.each(other, |a, b| vbslq_f32(vcgtq_f32(b, a), b, a)) }
        fn equal(self, other: Self) -> u32 {
            let bits = vld1q_u32([1, 2, 4, 8].as_ptr());
            (0..4).fold(0, |all, i| {
                let here = vaddvq_u32(vandq_u32(vceqq_f32(self.0[i], other.0[i]), bits));
                all | here << PARTS[i]
            })
        }
        fn where_below(self, limit: f32, then: Self, or: Self) -> Self {
            let choose = |i: usize| vbslq_f32(vcltq_f32(self.0[i], vdupq_n_f32(limit)), then.0[i], or.0[i]);
            Self(core::array::from_fn(choose))
        }
        fn power_of_two(self) -> Self {
            let one = vdupq_n_u32(1f32.to_bits());
            let power = |x| vreinterpretq_f32_u32(vaddq_u32(vshlq_n_u32::<23>(vreinterpretq_u32_f32(x)), one));
            Self(self.0.map(power))
        }
        fn sums(rows: [Self; ROWS]) -> float32x4_t {
            let [a, b, c, d] = rows.map(|Self([p, q, r, s])| vaddq_f32(vaddq_f32(p, r), vaddq_f32(q, s)));
            let pairs = |x, y| {
                let (low, high) = (vget_low_f32(x), vget_high_f32(x));
                vaddq_f32(vcombine_f32(low, vget_low_f32(y)), vcombine_f32(high, vget_high_f32(y)))
            };
            vpaddq_f32(pairs(a, b), pairs(c, d))
        }
        fn numbers(four: float32x4_t) -> [f32; ROWS] {
            let mut numbers = [0.0; ROWS];
            vst1q_f32(numbers.as_mut_ptr(), four);
            numbers
        }
        fn of_fours(fours: [float32x4_t; LANES / ROWS]) -> Self { Self(fours) }
        fn keep(self, count: usize, others: f32) -> Self {
            let (others, count) = (vdupq_n_f32(others), vdupq_n_u32(count.min(LANES) as u32));
            let first = vld1q_u32([0, 1, 2, 3].as_ptr());
            Self(core::array::from_fn(|i| {
                let lanes = vaddq_u32(first, vdupq_n_u32(PARTS[i] as u32));
                vbslq_f32(vcltq_u32(lanes, count), self.0[i], others)
            }))
        }
        fn load_part(from: &[f32], missing: f32) -> Self {
            let missing = vdupq_n_f32(missing);
            Self(PARTS.map(|at| match from.get(at..).unwrap_or_default() {
                [] => missing,
                [a] => vsetq_lane_f32::<0>(*a, missing),
                [a, b] => vsetq_lane_f32::<1>(*b, vsetq_lane_f32::<0>(*a, missing)),
                [a, b, c] => vsetq_lane_f32::<2>(*c, vsetq_lane_f32::<1>(*b, vsetq_lane_f32::<0>(*a, missing))),
                part => vld1q_f32(part.as_ptr()),
            }))
        }
        fn store_part(self, to: &mut [f32]) {
            for (part, four) in to.chunks_mut(4).zip(self.0) {
                if let Some(part) = part.first_chunk_mut::<4>() {
                    vst1q_f32(part.as_mut_ptr(), four);
                    continue;
                }
                let numbers = [vgetq_lane_f32::<0>(four), vgetq_lane_f32::<1>(four), vgetq_lane_f32::<2>(four)];
                part.iter_mut().zip(numbers).for_each(|(to, number)| *to = number);
            }
        }
        fn largest(self) -> f32 {
            let [p, q, r, s] = self.0;
            vmaxvq_f32(vmaxq_f32(vmaxq_f32(p, q), vmaxq_f32(r, s)))
        }
        fn replace(self, lane: usize, by: f32) -> Self {
            let (by, lane) = (vdupq_n_f32(by), vdupq_n_u32(lane.min(LANES) as u32));
            let first = vld1q_u32([0, 1, 2, 3].as_ptr());
            Self(core::array::from_fn(|i| {
                let lanes = vaddq_u32(first, vdupq_n_u32(PARTS[i] as u32));
                vbslq_f32(vceqq_u32(lanes, lane), by, self.0[i])
            }))
        }
    } }
}

#[cfg(test)]
mod tests {
    use alloc::vec::Vec;

    use super::*;

    /// All that a machine's lanes are used for, of numbers that include what is rare.
    #[inline(always)]
    unsafe fn everything<L: Lanes>(a: &[f32; LANES], b: &[f32; LANES], bits: &mut Vec<u32>) {
        // SAFETY: the caller has the instructions.
        unsafe {
            let (x, y) = (L::load(a), L::load(b));
            let vectors = [
                L::splat(a[3]),
                x.add(y),
                x.subtract(y),
                x.multiply(y),
                x.or_larger(y),
                y.or_larger(x),
                x.where_below(0.5, x, y),
                x.power_of_two(),
                L::load_part(&a[..5], -1.5),
                L::load_part(&a[..0], 2.0),
                L::load_part(a, 2.0),
                L::load_part(&a[..1], 2.0),
                L::load_part(&a[..8], 2.0),
                L::load_part(&a[..11], 2.0),
                L::load_part(&a[..14], 2.0),
                x.replace(0, 3.0),
                x.replace(9, b[0]),
                x.replace(LANES, 3.0),
                x.replace(usize::MAX, 3.0),
                x.keep(0, 3.0),
                x.keep(5, b[0]),
                x.keep(8, 3.0),
                x.keep(13, 3.0),
                x.keep(LANES, 3.0),
                L::of_fours([
                    L::sums([x, y, x, y]),
                    L::sums([x, x, y, y]),
                    L::sums([y; 4]),
                    L::sums([y, y, y, x]),
                ]),
            ];
            for vector in vectors {
                let mut lanes = [0.0; LANES];
                vector.store(&mut lanes);
                bits.extend(lanes.map(f32::to_bits));
            }
            for count in 0..=LANES {
                let mut numbers = [0.25; LANES];
                x.store_part(&mut numbers[..count]);
                bits.extend(numbers.map(f32::to_bits));
            }
            bits.push(x.equal(y));
            bits.push(x.equal(x));
            let fours = [L::sums([x, y, x.add(y), y.multiply(y)]), L::sums([y, y, x, x])];
            bits.extend(fours.into_iter().flat_map(|four| L::numbers(four)).map(f32::to_bits));
            bits.push(x.sum().to_bits());
            // Which of two zeros is the larger is left open.
            bits.push((x.largest() + 0.0).to_bits());
        }
    }

    #[cfg(all(target_arch = "x86_64", feature = "std"))]
    #[target_feature(enable = "avx512f")]
    fn with_avx512(a: &[f32; LANES], b: &[f32; LANES], bits: &mut Vec<u32>) {
        // SAFETY: the machine has the instructions, or this would not run.
        unsafe { everything::<Avx512>(a, b, bits) };
    }

    #[cfg(all(target_arch = "x86_64", feature = "std"))]
    #[target_feature(enable = "avx2")]
    fn with_avx2(a: &[f32; LANES], b: &[f32; LANES], bits: &mut Vec<u32>) {
        // SAFETY: the machine has the instructions, or this would not run.
        unsafe { everything::<Avx2>(a, b, bits) };
    }

    #[test]
    fn every_machines_lanes_give_the_same_bits() {
        let mut random = crate::SplitMix64(3);
        let mut number = || {
            let word = random.next();
            match word % 8 {
                0 => 0.0,
                1 => -0.0,
                2 => f32::NEG_INFINITY,
                3 => 1e-40,
                4 => 0.5,
                _ => (word >> 40) as f32 / 8_388_608.0 - 1.0,
            }
        };
        for _ in 0..2_000 {
            let a: [f32; LANES] = core::array::from_fn(|_| number());
            let mut b: [f32; LANES] = core::array::from_fn(|_| number());
            b[4] = a[4];
            let mut expected = Vec::new();
            // SAFETY: every machine has these instructions.
            unsafe { everything::<Portable>(&a, &b, &mut expected) };
            let run = |with: unsafe fn(&[f32; LANES], &[f32; LANES], &mut Vec<u32>)| {
                let mut bits = Vec::new();
                // SAFETY: only what the machine has is run.
                unsafe { with(&a, &b, &mut bits) };
                for (place, (bits, expected)) in bits.iter().zip(&expected).enumerate() {
                    let (bits, expected) = (f32::from_bits(*bits), f32::from_bits(*expected));
                    // The bits of a NaN are nobody's.
                    let same = bits.to_bits() == expected.to_bits() || (bits.is_nan() && expected.is_nan());
                    assert!(same, "{place}: {bits} for {expected} of {a:?} and {b:?}");
                }
                assert_eq!(bits.len(), expected.len());
            };
            run(everything::<Base>);
            #[cfg(all(target_arch = "x86_64", feature = "std"))]
            {
                if std::arch::is_x86_feature_detected!("avx512f") {
                    run(with_avx512);
                }
                if std::arch::is_x86_feature_detected!("avx2") {
                    run(with_avx2);
                }
            }
        }
    }
}
