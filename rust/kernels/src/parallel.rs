//! Work sharing without a thread pool of our own.
//!
//! The pool belongs to the caller. A kernel cuts its output into tasks whose boundaries depend on shapes only, and the
//! caller's [`Executor`] lends threads; each thread draws tasks from a shared counter until none is left. Results do
//! not depend on the number of threads, because no sum is split over tasks.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Lends threads to a kernel.
///
/// With rayon: `fn run(&self, body) { self.pool.broadcast(|_| body()); }`.
pub trait Executor: Sync {
    /// The number of threads that [`run`](Self::run) uses at best; at least 1. Kernels ask for scratch memory for so
    /// many.
    fn threads(&self) -> usize;

    /// Calls `body` once per thread, concurrently where possible, and returns when all calls have returned.
    ///
    /// The result stays right if it is called fewer or more times than there are threads.
    fn run(&self, body: &(dyn Fn() + Sync));
}

/// Runs everything on the calling thread.
#[derive(Clone, Copy, Debug, Default)]
pub struct Serial;

impl Executor for Serial {
    fn threads(&self) -> usize {
        1
    }

    fn run(&self, body: &(dyn Fn() + Sync)) {
        body();
    }
}

/// Runs `body(task, state)` once for each task in `0..tasks`; every thread has its own state.
///
/// At most `states.len()` threads take part; no task runs twice, whatever the executor does.
pub fn for_each_task<T: Send>(
    executor: &dyn Executor,
    tasks: usize,
    states: impl Iterator<Item = T> + Send,
    body: impl Fn(usize, &mut T) + Sync,
) {
    let next = AtomicUsize::new(0);
    let states = Mutex::new(states);
    let worker = || {
        let state = states.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
        let Some(mut state) = state else { return };
        loop {
            let task = next.fetch_add(1, Ordering::Relaxed);
            if task >= tasks {
                return;
            }
            body(task, &mut state);
        }
    };
    if tasks <= 1 || executor.threads() <= 1 {
        worker();
    } else {
        executor.run(&worker);
        // An executor that lent no thread leaves the work to this one.
        worker();
    }
    assert!(next.load(Ordering::Relaxed) >= tasks, "for_each_task needs at least one state");
}

/// Runs `body(index, chunk)` for each chunk of `chunk_len` elements (the last one may be shorter) of `out`.
///
/// # Panics
/// If `chunk_len` is 0 while `out` is not empty.
pub fn for_each_chunk<T: Send>(
    executor: &dyn Executor,
    out: &mut [T],
    chunk_len: usize,
    body: impl Fn(usize, &mut [T]) + Sync,
) {
    if out.is_empty() {
        return;
    }
    let tasks = out.len().div_ceil(chunk_len);
    let chunks = Mutex::new(out.chunks_mut(chunk_len).enumerate());
    for_each_task(executor, tasks, (0..executor.threads()).map(|_| ()), |_, ()| {
        let chunk = chunks.lock().unwrap_or_else(std::sync::PoisonError::into_inner).next();
        if let Some((index, chunk)) = chunk {
            body(index, chunk);
        }
    });
}

/// The `index`-th of `parts` ranges that divide `0..total` as evenly as possible, with boundaries at multiples of
/// `multiple`.
pub fn even_part(total: usize, parts: usize, multiple: usize, index: usize) -> Range<usize> {
    let units = total.div_ceil(multiple);
    let bound = |part: usize| {
        let (share, extra) = (units / parts, units % parts);
        ((share * part + extra.min(part)) * multiple).min(total)
    };
    bound(index)..bound(index + 1)
}

/// A pointer to an output that several threads write at disjoint places.
#[derive(Clone, Copy)]
pub(crate) struct SharedOut<T>(pub(crate) *mut T);

// SAFETY: the pointer is only used by kernels whose tasks write disjoint elements (each says so where it does).
unsafe impl<T: Send> Send for SharedOut<T> {}
// SAFETY: as above; sharing the wrapper only copies the pointer.
unsafe impl<T: Send> Sync for SharedOut<T> {}

impl<T> SharedOut<T> {
    /// The pointer. A method, so that closures capture the wrapper and not its field.
    pub(crate) fn get(self) -> *mut T {
        self.0
    }
}

/// An executor over scoped threads, for tests and benchmarks.
#[cfg(any(test, feature = "testing"))]
#[derive(Clone, Copy, Debug)]
pub struct ScopedThreads(pub usize);

#[cfg(any(test, feature = "testing"))]
impl Executor for ScopedThreads {
    fn threads(&self) -> usize {
        self.0
    }

    fn run(&self, body: &(dyn Fn() + Sync)) {
        std::thread::scope(|scope| {
            for _ in 1..self.0 {
                scope.spawn(body);
            }
            body();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn even_parts_cover_the_range_once() {
        for total in [0, 1, 13, 14, 15, 49, 100, 3136] {
            for parts in [1, 2, 3, 7] {
                for multiple in [1, 8, 14] {
                    let mut next = 0;
                    for index in 0..parts {
                        let part = even_part(total, parts, multiple, index);
                        assert_eq!(part.start, next);
                        next = part.end;
                    }
                    assert_eq!(next, total);
                }
            }
        }
    }

    #[test]
    fn each_task_runs_once_even_if_the_executor_calls_too_often_or_never() {
        struct Calls(usize);
        impl Executor for Calls {
            fn threads(&self) -> usize {
                3
            }
            fn run(&self, body: &(dyn Fn() + Sync)) {
                (0..self.0).for_each(|_| body());
            }
        }
        for calls in [0, 1, 10] {
            let seen: Vec<AtomicUsize> = (0..20).map(|_| AtomicUsize::new(0)).collect();
            for_each_task(&Calls(calls), 20, 0..3, |task, _| {
                seen[task].fetch_add(1, Ordering::Relaxed);
            });
            assert!(seen.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn chunks_are_visited_with_their_index() {
        let mut out = vec![0; 103];
        for_each_chunk(&ScopedThreads(3), &mut out, 10, |index, chunk| chunk.fill(index));
        assert!(out.iter().enumerate().all(|(i, &x)| x == i / 10));
    }
}
