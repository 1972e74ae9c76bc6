//! A few threads that share out numbered pieces of one job, in well under a microsecond. Knows no kernels.
//!
//! Whoever is awake takes the next piece, the caller included, and the caller waits only for pieces that someone has
//! begun: a thread that the system has put aside holds nothing up. Idle threads spin briefly, then sleep.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::thread::JoinHandle;

/// How often an idle thread looks for work before it sleeps: some tens of microseconds, the gaps inside a pass.
const SPINS: usize = 4_000;

/// One job, alive on its caller's stack for as long as the gate is open or anyone is inside.
struct Job<'a> {
    work: &'a (dyn Fn(usize) + Sync),
    n_pieces: usize,
    next: AtomicUsize,
    has_panicked: AtomicBool,
}

impl Job<'_> {
    fn take_pieces(&self) {
        loop {
            let piece = self.next.fetch_add(1, Ordering::Relaxed);
            if piece >= self.n_pieces {
                return;
            }
            (self.work)(piece);
        }
    }
}

/// What caller and workers share.
#[derive(Default)]
struct Shared {
    /// Bit 0: the gate is open. Above it: how many workers are inside.
    gate: AtomicUsize,
    /// Counts jobs, so that a worker enters each at most once.
    epoch: AtomicUsize,
    job: AtomicPtr<Job<'static>>,
    is_closing: AtomicBool,
    n_asleep: AtomicUsize,
}

const OPEN: usize = 1;
const ONE_INSIDE: usize = 2;

/// The threads; they end when the pool is dropped.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held while a job runs: a second caller does its own work alone instead.
    busy: Mutex<()>,
}

impl Pool {
    /// `threads` counts the caller; fewer come when the system refuses more.
    pub(crate) fn new(threads: usize) -> Self {
        let shared = Arc::new(Shared::default());
        let spawn = |index: usize| {
            let shared = Arc::clone(&shared);
            let named = std::thread::Builder::new().name(format!("kernels-{index}"));
            named.spawn(move || work_until_closed(&shared)).ok()
        };
        let workers = (1..threads).map_while(spawn).collect();
        Self { shared, workers, busy: Mutex::new(()) }
    }

    /// Threads that share a job, the caller included.
    pub(crate) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `work` once with each number below `n_pieces`, on any thread, and returns when all are done.
    ///
    /// # Panics
    /// When `work` panics.
    pub(crate) fn run(&self, n_pieces: usize, work: &(dyn Fn(usize) + Sync)) {
        let Some(_busy) = self.lock(n_pieces) else {
            (0..n_pieces).for_each(work);
            return;
        };
        let job = Job { work, n_pieces, next: AtomicUsize::new(0), has_panicked: AtomicBool::new(false) };
        let visit = Visit::open(&self.shared, &job);
        if self.shared.n_asleep.load(Ordering::SeqCst) > 0 {
            self.workers.iter().for_each(|it| it.thread().unpark());
        }
        job.take_pieces();
        drop(visit);
        assert!(!job.has_panicked.load(Ordering::Relaxed), "a kernel panicked on another thread");
    }

    /// Calls `work` once with each part of something that is to be changed, on any thread.
    pub(crate) fn run_each<T: Send>(&self, parts: impl Iterator<Item = T>, work: impl Fn(T) + Sync) {
        // A mutex for each: cheap beside thousands of numbers, and nothing unsafe.
        let parts: Vec<Mutex<Option<T>>> = parts.map(|it| Mutex::new(Some(it))).collect();
        self.run(parts.len(), &|index| {
            let part = parts[index].lock().unwrap_or_else(PoisonError::into_inner).take();
            part.map(&work);
        });
    }

    /// The right to use the workers, when there are any, they are worth it and nobody else uses them.
    fn lock(&self, n_pieces: usize) -> Option<MutexGuard<'_, ()>> {
        if self.workers.is_empty() || n_pieces <= 1 {
            return None;
        }
        match self.busy.try_lock() {
            Ok(guard) => Some(guard),
            // A job that panicked has left nothing behind.
            Err(TryLockError::Poisoned(guard)) => Some(guard.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.is_closing.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.thread().unpark();
            // A worker that panicked has reported it already.
            let _ = worker.join();
        }
    }
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish_non_exhaustive()
    }
}

/// An open gate; dropping it, also by a panic, closes it and waits until nobody is inside.
struct Visit<'a> {
    shared: &'a Shared,
}

impl<'a> Visit<'a> {
    fn open(shared: &'a Shared, job: &'a Job<'a>) -> Self {
        shared.job.store(std::ptr::from_ref(job).cast_mut().cast(), Ordering::Relaxed);
        shared.epoch.fetch_add(1, Ordering::Relaxed);
        shared.gate.fetch_or(OPEN, Ordering::SeqCst);
        Self { shared }
    }
}

impl Drop for Visit<'_> {
    fn drop(&mut self) {
        self.shared.gate.fetch_and(!OPEN, Ordering::AcqRel);
        let mut n_looks = 0usize;
        while self.shared.gate.load(Ordering::Acquire) != 0 {
            n_looks += 1;
            // Whoever is inside may have been put aside by the system: then this core is better given away.
            if n_looks > SPINS { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
    }
}

fn work_until_closed(shared: &Shared) {
    let mut last_epoch = 0;
    let mut n_looks = 0;
    while !shared.is_closing.load(Ordering::Relaxed) {
        let gate = shared.gate.load(Ordering::Acquire);
        let is_new = gate & OPEN != 0 && shared.epoch.load(Ordering::Relaxed) != last_epoch;
        if is_new {
            if shared.gate.compare_exchange(gate, gate + ONE_INSIDE, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
                last_epoch = shared.epoch.load(Ordering::Relaxed);
                take_part(shared);
                shared.gate.fetch_sub(ONE_INSIDE, Ordering::Release);
            }
            n_looks = 0;
        } else if n_looks < SPINS {
            n_looks += 1;
            std::hint::spin_loop();
        } else {
            shared.n_asleep.fetch_add(1, Ordering::SeqCst);
            // Looking again after the announcement: either this sees the open gate, or the opener sees the sleeper.
            let is_open =
                shared.gate.load(Ordering::SeqCst) & OPEN != 0 && shared.epoch.load(Ordering::Relaxed) != last_epoch;
            if !is_open && !shared.is_closing.load(Ordering::SeqCst) {
                std::thread::park();
            }
            shared.n_asleep.fetch_sub(1, Ordering::SeqCst);
            n_looks = 0;
        }
    }
}

/// Works on the current job; the caller must be counted as inside.
fn take_part(shared: &Shared) {
    let job = shared.job.load(Ordering::Relaxed);
    // SAFETY: this thread was counted as inside while the gate was open, and `Visit` keeps the job alive until the
    // gate is closed and nobody is inside. Joining with acquire order made the pointer and the job visible.
    let job = unsafe { &*job };
    if catch_unwind(AssertUnwindSafe(|| job.take_pieces())).is_err() {
        job.has_panicked.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_piece_runs_exactly_once_job_after_job() {
        for threads in [1, 2, 5] {
            let pool = Pool::new(threads);
            for n_pieces in (0..400).chain([10_000]) {
                let counts: Vec<AtomicUsize> = (0..n_pieces).map(|_| AtomicUsize::new(0)).collect();
                pool.run(n_pieces, &|piece| {
                    counts[piece].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|it| it.load(Ordering::Relaxed) == 1));
            }
        }
    }

    #[test]
    fn sleeping_threads_wake_up_and_two_callers_do_not_meet() {
        let pool = Pool::new(3);
        for _ in 0..3 {
            std::thread::sleep(std::time::Duration::from_millis(5));
            let sum = AtomicUsize::new(0);
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        pool.run(100, &|piece| {
                            sum.fetch_add(piece, Ordering::Relaxed);
                        });
                    });
                }
            });
            assert_eq!(sum.load(Ordering::Relaxed), 4 * 4950);
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(2);
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            pool.run(64, &|piece| assert!(piece != 40, "as planned"));
        }));
        assert!(outcome.is_err());
        let sum = AtomicUsize::new(0);
        pool.run(10, &|piece| {
            sum.fetch_add(piece, Ordering::Relaxed);
        });
        assert_eq!(sum.load(Ordering::Relaxed), 45);
    }
}
