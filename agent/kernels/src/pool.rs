//! Threads that help the calling one with the parts of a step.
//!
//! The parts of a step stand in a row. The caller takes them from the front, helpers from the back, so that most
//! of what a thread reads in one step is what it wrote in the step before; whoever is done early takes what is
//! left, and a helper that the system does not run holds up nothing but the part that it has taken. Between
//! steps helpers look out for the next for a moment, and then sleep.

use std::any::Any;
use std::cell::UnsafeCell;
use std::fmt;
use std::hint::spin_loop;
use std::io;
use std::panic::{AssertUnwindSafe, RefUnwindSafe, UnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long a thread looks out for work before it sleeps: longer than what lies between two stages of a frame,
/// and than it takes to wake a thread.
const LOOK_OUT: Duration = Duration::from_micros(100);
/// Parts of a step, at most.
pub(crate) const MAX_PARTS: usize = u16::MAX as usize;

/// The threads that a plan may use. A clone shares them: whose turn it is has them to itself, and who finds them
/// busy goes on alone. They end with the last clone.
#[derive(Clone, Default)]
pub struct Pool(Option<Arc<Crew>>);

impl Pool {
    /// So many threads, the calling one included; [`Pool::default`] is that one alone.
    ///
    /// # Errors
    /// Where the system gives no more threads.
    pub fn new(threads: usize) -> io::Result<Self> {
        if threads <= 1 {
            return Ok(Self::default());
        }
        let mut crew = Crew {
            board: Arc::default(),
            helpers: Vec::new(),
        };
        for number in 1..threads {
            let board = Arc::clone(&crew.board);
            let helper = thread::Builder::new().name(format!("kernels-{number}"));
            crew.helpers.push(helper.spawn(move || board.help())?);
        }
        Ok(Self(Some(Arc::new(crew))))
    }

    /// How many threads there are, the calling one included.
    #[must_use]
    pub fn threads(&self) -> usize {
        1 + self.0.as_ref().map_or(0, |crew| crew.helpers.len())
    }

    /// The threads that are to be had now; nobody else has them until it is dropped.
    #[must_use]
    pub fn turn(&self) -> Turn<'_> {
        let crew = self.0.as_deref().filter(|crew| {
            let free = crew
                .board
                .busy
                .compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
            free.is_ok()
        });
        if let Some(crew) = crew {
            *lock(&crew.board.caller) = Some(thread::current());
        }
        Turn(crew)
    }
}

// A panic in a part is passed on, and leaves the threads as they were.
impl UnwindSafe for Pool {}
impl RefUnwindSafe for Pool {}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish()
    }
}

/// The pool's threads, for a while.
pub struct Turn<'p>(Option<&'p Crew>);

impl Turn<'_> {
    /// How many threads there are, the calling one included; that one alone where the others are busy.
    #[must_use]
    pub fn threads(&self) -> usize {
        1 + self.0.map_or(0, |crew| crew.helpers.len())
    }

    /// Does every part of some work; returns when all are done.
    ///
    /// # Panics
    /// Where a part panics, whichever thread has it; after the others are done.
    pub(crate) fn each(&mut self, parts: usize, work: &(dyn Fn(usize) + Sync)) {
        match self.0 {
            Some(crew) if parts > 1 => crew.each(parts, work),
            _ => (0..parts).for_each(work),
        }
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if let Some(crew) = self.0 {
            crew.board.busy.store(false, Ordering::Release);
        }
    }
}

/// Helpers, and what they share with the caller.
struct Crew {
    board: Arc<Board>,
    helpers: Vec<JoinHandle<()>>,
}

impl Crew {
    fn each(&self, parts: usize, work: &(dyn Fn(usize) + Sync)) {
        let board = &*self.board;
        let back = u16::try_from(parts).expect("a step has at most MAX_PARTS parts");
        // SAFETY: only the life is stretched; nobody calls it any more when this function returns.
        let work = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(work) };
        // SAFETY: it is read between taking a part and finishing it, and all parts are finished.
        unsafe { *board.work.get() = Some(work) };
        board.left.store(parts, Ordering::Relaxed);
        board.open.store(u32::from(back), Ordering::SeqCst);
        if board.sleeping.load(Ordering::SeqCst) > 0 {
            self.wake();
        }
        while board.help_with(Board::front) {}
        board.wait();
        if let Some(panic) = lock(&board.panic).take() {
            resume_unwind(panic);
        }
    }

    fn wake(&self) {
        self.helpers.iter().for_each(|helper| helper.thread().unpark());
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.board.stop.store(true, Ordering::SeqCst);
        self.wake();
        for helper in self.helpers.drain(..) {
            // Panics in parts are caught: a helper has none of its own.
            let _ = helper.join();
        }
    }
}

/// What is to be done.
#[derive(Default)]
struct Board {
    /// Whether it is somebody's turn.
    busy: AtomicBool,
    /// The parts that nobody has taken: the first in the upper half, the one behind the last in the lower.
    open: AtomicU32,
    work: UnsafeCell<Option<&'static (dyn Fn(usize) + Sync)>>,
    /// Parts that are not finished.
    left: AtomicUsize,
    /// Helpers that sleep, or are about to.
    sleeping: AtomicUsize,
    /// Whose turn it is, and whether that thread sleeps until all is finished.
    caller: Mutex<Option<Thread>>,
    waiting: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    stop: AtomicBool,
}

// SAFETY: `work` is written by the one whose turn it is, while no part is open or unfinished, and read by those
// who have taken a part and not finished it.
unsafe impl Sync for Board {}

impl Board {
    /// Takes the first of the open parts.
    fn front(open: u32) -> Option<(u32, usize)> {
        let (front, back) = (open >> 16, open & 0xffff);
        (front < back).then(|| (open + 0x1_0000, front as usize))
    }

    /// Takes the last.
    fn back(open: u32) -> Option<(u32, usize)> {
        let (front, back) = (open >> 16, open & 0xffff);
        (front < back).then(|| (open - 1, back as usize - 1))
    }

    /// Takes a part and does it; `false` where none is open.
    fn help_with(&self, end: fn(u32) -> Option<(u32, usize)>) -> bool {
        let mut open = self.open.load(Ordering::Relaxed);
        let part = loop {
            let Some((without, part)) = end(open) else { return false };
            match self
                .open
                .compare_exchange_weak(open, without, Ordering::AcqRel, Ordering::Relaxed)
            {
                Ok(_) => break part,
                Err(now) => open = now,
            }
        };
        // SAFETY: a part that is taken and not finished keeps the work alive, and its place from being written.
        if let Some(work) = unsafe { *self.work.get() }
            && let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(part)))
        {
            *lock(&self.panic) = Some(panic);
        }
        if self.left.fetch_sub(1, Ordering::SeqCst) == 1
            && self.waiting.load(Ordering::SeqCst)
            && let Some(caller) = &*lock(&self.caller)
        {
            caller.unpark();
        }
        true
    }

    /// Until all parts are finished.
    fn wait(&self) {
        if look_out(|| self.left.load(Ordering::Acquire) == 0) {
            return;
        }
        self.waiting.store(true, Ordering::SeqCst);
        while self.left.load(Ordering::SeqCst) > 0 {
            thread::park();
        }
        self.waiting.store(false, Ordering::Relaxed);
    }

    /// A helper's life.
    fn help(&self) {
        let something = || Self::back(self.open.load(Ordering::Relaxed)).is_some();
        while !self.stop.load(Ordering::Relaxed) {
            if self.help_with(Self::back) || look_out(|| something() || self.stop.load(Ordering::Relaxed)) {
                continue;
            }
            self.sleeping.fetch_add(1, Ordering::SeqCst);
            // Whoever opens parts, or stops, looks for sleepers afterwards.
            let open = self.open.load(Ordering::SeqCst);
            if Self::back(open).is_none() && !self.stop.load(Ordering::SeqCst) {
                thread::park();
            }
            self.sleeping.fetch_sub(1, Ordering::SeqCst);
        }
    }
}

/// Whether something comes true within [`LOOK_OUT`].
fn look_out(comes: impl Fn() -> bool) -> bool {
    let mut start = None;
    loop {
        for _ in 0..64 {
            if comes() {
                return true;
            }
            spin_loop();
        }
        if start.get_or_insert_with(Instant::now).elapsed() > LOOK_OUT {
            return false;
        }
    }
}

/// What a mutex holds is whole, even where a thread has panicked.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_is_done_once_by_any_number_of_threads() {
        for threads in 1..=4 {
            let pool = Pool::new(threads).unwrap();
            assert_eq!(pool.threads(), threads);
            let mut turn = pool.turn();
            for parts in [0, 1, 2, 3, 7, 64, MAX_PARTS] {
                let done: Vec<AtomicUsize> = (0..parts).map(|_| AtomicUsize::new(0)).collect();
                turn.each(parts, &|part| {
                    done[part].fetch_add(1, Ordering::Relaxed);
                });
                assert!(
                    done.iter().all(|done| done.load(Ordering::Relaxed) == 1),
                    "{threads}, {parts}"
                );
            }
        }
    }

    #[test]
    fn helpers_that_sleep_are_woken() {
        let pool = Pool::new(3).unwrap();
        let crew = pool.0.as_ref().unwrap();
        for _ in 0..3 {
            while crew.board.sleeping.load(Ordering::SeqCst) < 2 {
                thread::yield_now();
            }
            // Each waits for the others: only three threads at a time can do this.
            let together = std::sync::Barrier::new(3);
            pool.turn().each(3, &|_| {
                together.wait();
            });
        }
    }

    #[test]
    fn a_part_that_panics_ends_the_call_and_nothing_else() {
        let pool = Pool::new(2).unwrap();
        for bad in [0, 1] {
            // Both threads have one part each.
            let together = std::sync::Barrier::new(2);
            let call = catch_unwind(AssertUnwindSafe(|| {
                pool.turn().each(2, &|part| {
                    together.wait();
                    assert!(part != bad, "part {bad}");
                });
            }));
            let said = call.unwrap_err().downcast::<String>().unwrap();
            assert_eq!(*said, format!("part {bad}"));
            let done = AtomicUsize::new(0);
            pool.turn().each(9, &|_| {
                done.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(done.into_inner(), 9);
        }
    }

    #[test]
    fn who_finds_the_threads_busy_goes_on_alone() {
        let pool = Pool::new(2).unwrap();
        let mut first = pool.turn();
        let other = pool.clone();
        assert_eq!((first.threads(), other.turn().threads()), (2, 1));
        // From within a part, too.
        first.each(2, &|_| other.turn().each(2, &|_| ()));
        drop(first);
        assert_eq!(other.turn().threads(), 2);
    }

    #[test]
    fn the_threads_end_with_the_last_clone() {
        let pool = Pool::new(3).unwrap();
        let board = Arc::downgrade(&pool.0.as_ref().unwrap().board);
        let other = pool.clone();
        drop(pool);
        assert_eq!(other.turn().threads(), 3);
        drop(other);
        assert!(board.upgrade().is_none(), "a thread still holds it");
    }
}
