//! Frames do not allocate.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use offramp_core::{Core, Settings, SplitMix64};

use crate::drive::{EXITS, frame, network};

/// Counts what a thread allocates.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps the contract of `dealloc`.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn frames_audits_lessons_trials_and_changes_of_context_do_not_allocate() {
    let mut random = SplitMix64(1);
    let mut settings = Settings {
        audit_rate: 0.2,
        threshold: 0.3,
        ..Settings::default()
    };
    settings.guard.trial_every = 16;
    settings.learner.gate = 0.0;
    let mut core = Core::new(network(&mut random, EXITS - 1), settings).unwrap();
    let mut show = |core: &mut Core, frames: usize| {
        for _ in 0..frames {
            let context = random.next() % 3;
            frame(core, &mut random, context, |_| ());
            core.learn();
        }
    };
    // Each context takes its memory when it comes up for the first time.
    show(&mut core, 500);
    core.close_window();
    let bytes = core.bytes();
    let before = ALLOCATIONS.with(Cell::get);
    show(&mut core, 20_000);
    assert_eq!(ALLOCATIONS.with(Cell::get) - before, 0);
    let report = core.close_window();
    assert!(
        report.audits.run > 1_000 && report.learner.updates > 1_000,
        "{report:?}"
    );
    assert!(report.guard.promotions + report.learner.rollbacks > 10, "{report:?}");
    assert_eq!(core.bytes(), bytes);
}
