//! What a machine can do at most: multiply-adds on nothing but registers, and reading memory.

use std::time::{Duration, Instant};

use super::pool::Pool;
use super::simd::{Isa, Simd, dispatch};

/// How long is measured.
const TIME: Duration = Duration::from_millis(20);
/// Multiply-adds of vectors in a row, per sum: some ten microseconds.
const ROW: usize = 4096;

/// Multiply-adds per second with an instruction set's vectors, on all threads of a pool together; what a kernel
/// reaches of it is its efficiency. Takes 20 ms.
#[must_use]
pub fn peak(isa: Isa, pool: &Pool) -> f64 {
    let mut turn = pool.turn();
    let threads = turn.threads();
    // Four rows a thread: long enough not to count the hand-over, and nobody waits long for another.
    let parts = 4 * threads;
    let (mut rows, start) = (0_usize, Instant::now());
    while start.elapsed() < TIME {
        turn.each(parts, &|_| {
            let mut sum = 0.0;
            multiply_add(isa, &mut sum);
            std::hint::black_box(sum);
        });
        rows += parts;
    }
    // As many sums as a tile of a matrix product has.
    let of_row = ROW * 2 * isa.tile_rows() * isa.lanes();
    (rows * of_row) as f64 / start.elapsed().as_secs_f64()
}

/// The sum of numbers, with an instruction set's vectors: what it takes to read them once.
#[must_use]
pub fn read(isa: Isa, numbers: &[f32]) -> f32 {
    let mut sum = 0.0;
    read_all(isa, numbers, &mut sum);
    sum
}

dispatch! {
    fn read_all => add_up(numbers: &[f32], sum: &mut f32)
}

/// # Safety
/// The instructions are enabled.
#[inline(always)]
unsafe fn add_up<S: Simd>(numbers: &[f32], sum: &mut f32) {
    /// Sums at a time: one alone waits for itself.
    const SUMS: usize = 8;
    // SAFETY: the caller has the instructions; every load is inside of a chunk.
    unsafe {
        let mut sums = [S::splat(0.0); SUMS];
        let mut chunks = numbers.chunks_exact(SUMS * S::LANES);
        for chunk in chunks.by_ref() {
            for (part, sum) in sums.iter_mut().enumerate() {
                *sum = S::add(*sum, S::load(chunk.as_ptr().add(part * S::LANES)));
            }
        }
        let mut values = [0.0; 16];
        for v in sums {
            S::store(values.as_mut_ptr(), v);
            *sum += values[..S::LANES].iter().sum::<f32>();
        }
        *sum += chunks.remainder().iter().sum::<f32>();
    }
}

dispatch! {
    fn multiply_add => run(sum: &mut f32)
}

/// # Safety
/// The instructions are enabled.
#[inline(always)]
unsafe fn run<S: Simd>(sum: &mut f32) {
    // SAFETY: the caller has the instructions.
    unsafe {
        match S::TILE_ROWS {
            12 => sums::<S, 24>(sum),
            8 => sums::<S, 16>(sum),
            6 => sums::<S, 12>(sum),
            _ => sums::<S, 8>(sum),
        }
    }
}

/// # Safety
/// The instructions are enabled.
#[inline(always)]
unsafe fn sums<S: Simd, const SUMS: usize>(sum: &mut f32) {
    assert_eq!(SUMS, 2 * S::TILE_ROWS);
    // SAFETY: the caller has the instructions.
    unsafe {
        // Unknown to the compiler, and such that the sums stay finite.
        let (a, b) = (S::splat(std::hint::black_box(0.5)), S::splat(std::hint::black_box(1.0)));
        let mut sums = [a; SUMS];
        for _ in 0..ROW {
            for sum in &mut sums {
                *sum = S::fma(*sum, a, b);
            }
        }
        let mut values = [0.0; 16];
        for v in sums {
            S::store(values.as_mut_ptr(), v);
            *sum += values.iter().sum::<f32>();
        }
    }
}
