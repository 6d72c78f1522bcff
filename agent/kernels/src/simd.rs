//! Vectors of f32 as wide as the machine has them.
//!
//! A kernel is written once, over [`Simd`], and is compiled for every instruction set: inlined into a function
//! that enables it (see [`dispatch`]). What runs is decided when the program runs.

use std::fmt;

/// A set of vector instructions.
///
/// # Safety
/// The methods may be called only where the machine has the instructions, and where they are inlined into a
/// function that enables them. Pointers must be good for as many elements as a vector has; they need not be
/// aligned.
pub(crate) trait Simd: Copy {
    /// Elements of a vector.
    const LANES: usize;
    /// Rows of the tile that a matrix product keeps in registers; its width is two vectors.
    const TILE_ROWS: usize;
    type V: Copy;

    unsafe fn splat(value: f32) -> Self::V;
    unsafe fn load(at: *const f32) -> Self::V;
    /// Halves, widened.
    unsafe fn load_half(at: *const u16) -> Self::V;
    unsafe fn store(at: *mut f32, v: Self::V);
    /// Has memory brought into the nearest cache, if the machine likes. Any address will do.
    #[inline(always)]
    fn prefetch(at: *const u8) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: every x86-64 has the instruction, and nothing is read.
        unsafe {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            _mm_prefetch::<_MM_HINT_T0>(at.cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = at;
    }
    /// a b + c.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// The sum of the elements: the second half is added to the first until one is left.
    unsafe fn sum(v: Self::V) -> f32;
}

/// What any machine has; the compiler makes of it what it can.
#[derive(Clone, Copy)]
pub(crate) struct Portable;

impl Simd for Portable {
    const LANES: usize = 4;
    const TILE_ROWS: usize = 4;
    type V = [f32; 4];

    #[inline(always)]
    unsafe fn splat(value: f32) -> [f32; 4] {
        [value; 4]
    }

    #[inline(always)]
    unsafe fn load(at: *const f32) -> [f32; 4] {
        // SAFETY: the caller's pointer is good for a vector.
        unsafe { at.cast::<[f32; 4]>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn load_half(at: *const u16) -> [f32; 4] {
        // SAFETY: the caller's pointer is good for a vector.
        let halves = unsafe { at.cast::<[u16; 4]>().read_unaligned() };
        halves.map(|bits| half::f16::from_bits(bits).to_f32())
    }

    #[inline(always)]
    unsafe fn store(at: *mut f32, v: [f32; 4]) {
        // SAFETY: the caller's pointer is good for a vector.
        unsafe { at.cast::<[f32; 4]>().write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn fma(a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i] * b[i] + c[i])
    }

    #[inline(always)]
    unsafe fn add(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    unsafe fn mul(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    unsafe fn max(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i].max(b[i]))
    }

    #[inline(always)]
    unsafe fn min(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i].min(b[i]))
    }

    #[inline(always)]
    unsafe fn div(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        std::array::from_fn(|i| a[i] / b[i])
    }

    #[inline(always)]
    unsafe fn sum([a, b, c, d]: [f32; 4]) -> f32 {
        (a + c) + (b + d)
    }
}

/// A set whose every operation is an intrinsic, or a few.
macro_rules! simd {
    (
        $(#[$meta:meta])* $name:ident, $arch:ident, $v:ident, $lanes:literal lanes, $rows:literal rows,
        load_half |$half:ident| $load_half:expr, fma |$a:ident, $b:ident, $c:ident| $fma:expr, sum |$summed:ident| $sum:expr,
        splat = $splat:ident, load = $load:ident, store = $store:ident, $($operation:ident = $intrinsic:ident),*
    ) => {
        $(#[$meta])*
        #[derive(Clone, Copy)]
        pub(crate) struct $name;

        $(#[$meta])*
        impl Simd for $name {
            const LANES: usize = $lanes;
            const TILE_ROWS: usize = $rows;
            type V = std::arch::$arch::$v;

            #[inline(always)]
            unsafe fn splat(value: f32) -> Self::V {
                // SAFETY: as the trait says.
                unsafe { std::arch::$arch::$splat(value) }
            }

            #[inline(always)]
            unsafe fn load(at: *const f32) -> Self::V {
                // SAFETY: as the trait says.
                unsafe { std::arch::$arch::$load(at) }
            }

            #[inline(always)]
            unsafe fn load_half($half: *const u16) -> Self::V {
                // SAFETY: as the trait says.
                unsafe { $load_half }
            }

            #[inline(always)]
            unsafe fn store(at: *mut f32, v: Self::V) {
                // SAFETY: as the trait says.
                unsafe { std::arch::$arch::$store(at, v) }
            }

            #[inline(always)]
            unsafe fn fma($a: Self::V, $b: Self::V, $c: Self::V) -> Self::V {
                // SAFETY: as the trait says.
                unsafe { $fma }
            }

            #[inline(always)]
            unsafe fn sum($summed: Self::V) -> f32 {
                // SAFETY: as the trait says.
                unsafe { $sum }
            }

            $(
                #[inline(always)]
                unsafe fn $operation(a: Self::V, b: Self::V) -> Self::V {
                    // SAFETY: as the trait says.
                    unsafe { std::arch::$arch::$intrinsic(a, b) }
                }
            )*
        }
    };
}

simd! {
    /// AVX-512 of the first generation.
    #[cfg(target_arch = "x86_64")]
    Avx512, x86_64, __m512, 16 lanes, 8 rows,
    load_half |at| std::arch::x86_64::_mm512_cvtph_ps(std::arch::x86_64::_mm256_loadu_si256(at.cast())),
    fma |a, b, c| std::arch::x86_64::_mm512_fmadd_ps(a, b, c),
    sum |v| {
        use std::arch::x86_64::*;
        let high = _mm256_castpd_ps(_mm512_extractf64x4_pd::<1>(_mm512_castps_pd(v)));
        sum_of_eight(_mm256_add_ps(_mm512_castps512_ps256(v), high))
    },
    splat = _mm512_set1_ps, load = _mm512_loadu_ps, store = _mm512_storeu_ps, add = _mm512_add_ps, mul = _mm512_mul_ps,
    max = _mm512_max_ps, min = _mm512_min_ps, div = _mm512_div_ps
}

simd! {
    /// AVX2 with fused multiply-add and conversion of halves: every x86-64 since 2013.
    #[cfg(target_arch = "x86_64")]
    Avx2, x86_64, __m256, 8 lanes, 6 rows,
    load_half |at| std::arch::x86_64::_mm256_cvtph_ps(std::arch::x86_64::_mm_loadu_si128(at.cast())),
    fma |a, b, c| std::arch::x86_64::_mm256_fmadd_ps(a, b, c),
    sum |v| sum_of_eight(v),
    splat = _mm256_set1_ps, load = _mm256_loadu_ps, store = _mm256_storeu_ps, add = _mm256_add_ps, mul = _mm256_mul_ps,
    max = _mm256_max_ps, min = _mm256_min_ps, div = _mm256_div_ps
}

simd! {
    /// What every aarch64 has.
    #[cfg(target_arch = "aarch64")]
    Neon, aarch64, float32x4_t, 4 lanes, 8 rows,
    load_half |at| {
        let halves = std::arch::aarch64::vld1_u16(at);
        let wide: std::arch::aarch64::float32x4_t;
        // The intrinsic for this asks for types that are not stable yet; the instruction is of the first ARMv8.
        std::arch::asm!(
            "fcvtl {wide:v}.4s, {halves:v}.4h", wide = out(vreg) wide, halves = in(vreg) halves,
            options(pure, nomem, nostack, preserves_flags),
        );
        wide
    },
    fma |a, b, c| std::arch::aarch64::vfmaq_f32(c, a, b),
    sum |v| {
        use std::arch::aarch64::*;
        let two = vadd_f32(vget_low_f32(v), vget_high_f32(v));
        vget_lane_f32::<0>(two) + vget_lane_f32::<1>(two)
    },
    splat = vdupq_n_f32, load = vld1q_f32, store = vst1q_f32, add = vaddq_f32, mul = vmulq_f32,
    max = vmaxq_f32, min = vminq_f32, div = vdivq_f32
}

/// # Safety
/// The machine has AVX.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn sum_of_eight(v: std::arch::x86_64::__m256) -> f32 {
    use std::arch::x86_64::*;
    // SAFETY: the caller has the instructions.
    unsafe {
        let four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
        let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps::<1>(two, two)))
    }
}

/// Which instructions kernels are run with. There are only those that this machine has.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Isa(Set);

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Set {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "aarch64")]
    Neon,
    Portable,
}

impl Isa {
    /// All that this machine can run, the fastest first.
    pub fn available() -> impl Iterator<Item = Self> {
        #[cfg(target_arch = "x86_64")]
        let avx2 =
            is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c");
        [
            // A virtual machine may have it without the others, which `dispatch` enables with it.
            #[cfg(target_arch = "x86_64")]
            (avx2 && is_x86_feature_detected!("avx512f")).then_some(Set::Avx512),
            #[cfg(target_arch = "x86_64")]
            avx2.then_some(Set::Avx2),
            #[cfg(target_arch = "aarch64")]
            Some(Set::Neon),
            Some(Set::Portable),
        ]
        .into_iter()
        .flatten()
        .map(Self)
    }

    /// The fastest.
    #[must_use]
    pub fn best() -> Self {
        Self::available().next().unwrap_or(Self(Set::Portable))
    }

    /// As processors' manuals call it, in small letters.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => "avx2",
            #[cfg(target_arch = "aarch64")]
            Set::Neon => "neon",
            Set::Portable => "portable",
        }
    }

    pub(crate) fn set(self) -> Set {
        self.0
    }

    /// Elements of a vector.
    pub(crate) fn lanes(self) -> usize {
        self.shape().0
    }

    /// Rows of a tile of a matrix product.
    pub(crate) fn tile_rows(self) -> usize {
        self.shape().1
    }

    /// Columns of a packed panel of weights: two vectors.
    pub(crate) fn panel(self) -> usize {
        2 * self.lanes()
    }

    fn shape(self) -> (usize, usize) {
        match self.0 {
            #[cfg(target_arch = "x86_64")]
            Set::Avx512 => (Avx512::LANES, Avx512::TILE_ROWS),
            #[cfg(target_arch = "x86_64")]
            Set::Avx2 => (Avx2::LANES, Avx2::TILE_ROWS),
            #[cfg(target_arch = "aarch64")]
            Set::Neon => (Neon::LANES, Neon::TILE_ROWS),
            Set::Portable => (Portable::LANES, Portable::TILE_ROWS),
        }
    }
}

impl fmt::Debug for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Makes a function that runs `$generic::<S>` with the instructions of an [`Isa`] enabled.
macro_rules! dispatch {
    ($(#[$meta:meta])* $vis:vis fn $name:ident => $generic:ident($($argument:ident: $type:ty),* $(,)?)) => {
        $(#[$meta])*
        $vis fn $name(isa: $crate::simd::Isa, $($argument: $type),*) {
            use $crate::simd::{self, Set};
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx2,fma,f16c")]
            fn avx512($($argument: $type),*) {
                // SAFETY: the instructions are enabled here.
                unsafe { $generic::<simd::Avx512>($($argument),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            fn avx2($($argument: $type),*) {
                // SAFETY: the instructions are enabled here.
                unsafe { $generic::<simd::Avx2>($($argument),*) }
            }
            match isa.set() {
                #[cfg(target_arch = "x86_64")]
                // SAFETY: an `Isa` is only made where the machine has its instructions.
                Set::Avx512 => unsafe { avx512($($argument),*) },
                #[cfg(target_arch = "x86_64")]
                // SAFETY: an `Isa` is only made where the machine has its instructions.
                Set::Avx2 => unsafe { avx2($($argument),*) },
                #[cfg(target_arch = "aarch64")]
                // SAFETY: every aarch64 has them.
                Set::Neon => unsafe { $generic::<simd::Neon>($($argument),*) },
                // SAFETY: it needs none.
                Set::Portable => unsafe { $generic::<simd::Portable>($($argument),*) },
            }
        }
    };
}

pub(crate) use dispatch;
