//! What the bench wants to know of memory: how much of it a frame asks for.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

/// Whether anybody wants to know. Otherwise threads would contend for the count.
static ASKED: AtomicBool = AtomicBool::new(false);
static BYTES: AtomicU64 = AtomicU64::new(0);

/// The system's allocator, and a count of the bytes that were asked for, by all threads, while
/// [`while_running`](Counting::while_running) counts.
pub struct Counting;

impl Counting {
    fn count(bytes: usize) {
        if ASKED.load(Relaxed) {
            BYTES.fetch_add(bytes as u64, Relaxed);
        }
    }

    /// Bytes that some work asks for; 0 in a program whose allocator is another one.
    pub(super) fn while_running(work: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<u64> {
        BYTES.store(0, Relaxed);
        ASKED.store(true, Relaxed);
        let done = work();
        let bytes = BYTES.load(Relaxed);
        ASKED.store(false, Relaxed);
        done.map(|()| bytes)
    }
}

// SAFETY: everything is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::count(layout.size());
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::count(layout.size());
        // SAFETY: the caller keeps the contract of `alloc_zeroed`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::count(size);
        // SAFETY: the caller keeps the contract of `realloc`.
        unsafe { System.realloc(at, layout, size) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(at, layout) }
    }
}
