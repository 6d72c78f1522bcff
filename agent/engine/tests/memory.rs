//! Frames do not allocate: alone in its program, because it counts what every thread takes.

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use offramp_engine::Engine;
use offramp_model::Package;

struct Counting;

static BYTES: AtomicUsize = AtomicUsize::new(0);

// SAFETY: everything is handed to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.fetch_add(layout.size(), Ordering::Relaxed);
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
fn a_frame_allocates_nothing_on_one_thread_or_two() {
    let zoo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../models/zoo");
    for name in ["revcol-fashion", "revcol-cifar100"] {
        let package = Package::open(&zoo.join(name)).unwrap();
        let pixels = vec![0.5; package.manifest().input.values()];
        for threads in [1, 2] {
            let mut engine = Engine::load(&package).unwrap().with_threads(threads).unwrap();
            let mut frame = engine.frame();
            let mut show = |frames: usize| {
                let before = BYTES.load(Ordering::Relaxed);
                for _ in 0..frames {
                    engine.start(&mut frame, &pixels).unwrap();
                    for stage in 0..engine.stages() {
                        engine.run_stage(stage, &mut frame).unwrap();
                    }
                }
                BYTES.load(Ordering::Relaxed) - before
            };
            // Buffers change hands until each has its size.
            assert!(show(20) > 0);
            let bytes = show(100);
            println!("{name}, {threads} threads: {} bytes allocated per frame", bytes / 100);
            assert_eq!(bytes, 0, "{name}, {threads} threads");
        }
    }
}
