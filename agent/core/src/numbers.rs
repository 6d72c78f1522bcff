//! Numbers that begin where a line of the cache begins: vectors are then read whole, and not from two lines each.

use alloc::vec::Vec;
use core::fmt;
use core::ops::{Deref, DerefMut};
use core::slice;

/// A line of the cache, and the widest vector.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([f32; PER_LINE]);

const PER_LINE: usize = 16;

/// What `Box<[f32]>` is, on lines of its own.
#[derive(Clone)]
pub(crate) struct Numbers {
    lines: Vec<Line>,
    len: usize,
}

impl From<Vec<f32>> for Numbers {
    fn from(numbers: Vec<f32>) -> Self {
        let mut aligned = Self {
            lines: alloc::vec![Line([0.0; PER_LINE]); numbers.len().div_ceil(PER_LINE)],
            len: numbers.len(),
        };
        aligned.copy_from_slice(&numbers);
        aligned
    }
}

impl Deref for Numbers {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        // SAFETY: lines are arrays of numbers side by side, at least `len` of them.
        unsafe { slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl DerefMut for Numbers {
    fn deref_mut(&mut self) -> &mut [f32] {
        // SAFETY: as above.
        unsafe { slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

impl PartialEq for Numbers {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl fmt::Debug for Numbers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_begin_with_a_line_and_are_what_they_were() {
        for n in [0_usize, 1, 15, 16, 17, 100] {
            let given: Vec<f32> = (0..n).map(|i| i as f32).collect();
            let mut numbers = Numbers::from(given.clone());
            assert_eq!(*numbers, given[..]);
            assert_eq!(numbers.clone(), numbers);
            assert!(n == 0 || numbers.as_ptr().addr().is_multiple_of(64));
            numbers.iter_mut().for_each(|x| *x += 1.0);
            assert!(n == 0 || numbers[n - 1] == n as f32);
        }
    }
}
