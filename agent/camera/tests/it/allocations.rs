//! A frame from memory or a pipe costs no allocation.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::Cursor;
use std::sync::Arc;

use offramp_camera::{Camera, Frame, Playback, Raw, sample};

use crate::shape;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// The system's allocator, counting what each thread asks of it.
struct Counting;

fn count() {
    // While a thread ends, its counter may be gone; nobody reads it then.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

// SAFETY: every call goes to the system's allocator unchanged; counting touches only a thread-local `Cell`.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's contract is passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract is passed on.
        unsafe { System.dealloc(pointer, layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's contract is passed on.
        unsafe { System.realloc(pointer, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations of all frames but the first, and how many those are.
fn after_the_first(camera: &mut dyn Camera) -> (u64, usize) {
    let mut frame = Frame::for_shape(camera.shape());
    assert!(camera.next(&mut frame).unwrap());
    let before = ALLOCATIONS.get();
    let mut frames = 0;
    while camera.next(&mut frame).unwrap() {
        frames += 1;
    }
    (ALLOCATIONS.get() - before, frames)
}

#[test]
fn playing_a_set_allocates_nothing_per_frame() {
    let mut camera = Playback::whole(Arc::new(sample::stream().unwrap()));
    assert_eq!(after_the_first(&mut camera), (0, 1999));
}

#[test]
fn raw_frames_allocate_nothing_per_frame() {
    let mut camera = Raw::new(Cursor::new(vec![7; 4 * 3 * 100]), shape(4, 1, 3));
    assert_eq!(after_the_first(&mut camera), (0, 99));
}

#[test]
fn the_counter_counts() {
    let before = ALLOCATIONS.get();
    drop(std::hint::black_box(vec![0_u8; 100]));
    assert_eq!(ALLOCATIONS.get() - before, 1);
}
