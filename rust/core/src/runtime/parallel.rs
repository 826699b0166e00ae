//! What a run works with: the threads of its session, and a budget of iterations.
//!
//! Work is cut into chunks whose bounds and arithmetic do not depend on the number of threads, so results are
//! the same bit for bit whatever it is.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;

use super::config::SessionOptions;
use super::error::RuntimeError;
use crate::ops::{OpError, OpResult};

/// A pool of threads, or none for single-threaded sessions; and how many iterations loops may still take.
pub struct Parallel {
    pool: Option<Arc<rayon::ThreadPool>>,
    threads: usize,
    /// The process that the threads belong to.
    process: u32,
    /// Iterations of one run.
    limit: u64,
    /// Those taken so far.
    taken: AtomicU64,
}

impl Parallel {
    /// `threads` threads; with one the caller's thread does the work.
    ///
    /// # Errors
    /// [`RuntimeError::Threads`] if the threads cannot be started.
    pub fn new(threads: usize) -> Result<Self, RuntimeError> {
        let pool = (threads > 1)
            .then(|| {
                rayon::ThreadPoolBuilder::new()
                    .num_threads(threads)
                    .thread_name(|index| format!("mnnq-{index}"))
                    .build()
            })
            .transpose()
            .map_err(|source| RuntimeError::Threads { threads, problem: source.to_string() })?;
        let (limit, taken) = (SessionOptions::LOOP_ITERATIONS, AtomicU64::new(0));
        let process = std::process::id();
        Ok(Self { pool: pool.map(Arc::new), threads: threads.max(1), process, limit, taken })
    }

    /// The caller's thread only.
    #[must_use]
    pub fn single() -> Self {
        let (limit, taken) = (SessionOptions::LOOP_ITERATIONS, AtomicU64::new(0));
        Self { pool: None, threads: 1, process: std::process::id(), limit, taken }
    }

    /// The same threads with a budget of `limit` iterations: for one run. Nothing is allocated.
    ///
    /// A forked process has none of the threads of its parent; there the caller's thread does all the work.
    #[must_use]
    pub fn for_run(&self, limit: u64) -> Self {
        let pool = self.own_pool().cloned();
        Self { pool, threads: self.threads, process: self.process, limit, taken: AtomicU64::new(0) }
    }

    /// The pool, unless its threads are those of another process.
    fn own_pool(&self) -> Option<&Arc<rayon::ThreadPool>> {
        self.pool.as_ref().filter(|_| self.process == std::process::id())
    }

    /// Whether loops wanted more iterations than there are.
    #[must_use]
    pub fn is_exhausted(&self) -> bool {
        self.taken.load(Ordering::Relaxed) > self.limit
    }

    /// Takes `count` iterations from the budget that the loops of a run share.
    ///
    /// # Errors
    /// [`OpError::Iterations`] if there are not so many left.
    pub fn take_iterations(&self, count: u64) -> OpResult<()> {
        // One thread drives a run, so that nobody else changes the count in between.
        let taken = self.taken.load(Ordering::Relaxed).saturating_add(count);
        self.taken.store(taken, Ordering::Relaxed);
        if taken > self.limit { Err(OpError::Iterations { limit: self.limit }) } else { Ok(()) }
    }

    /// Number of threads.
    #[must_use]
    pub fn threads(&self) -> usize {
        self.threads
    }

    /// Calls `work` inside the pool, so that the loops below need no hand-over.
    pub fn install<R: Send>(&self, work: impl FnOnce() -> R + Send) -> R {
        match self.own_pool() {
            Some(pool) => pool.install(work),
            None => work(),
        }
    }

    /// Calls `work(i, chunk)` for consecutive chunks of `len` elements; the last one may be shorter.
    pub fn for_each_chunk<T: Send>(
        &self,
        data: &mut [T],
        len: usize,
        work: impl Fn(usize, &mut [T]) + Sync + Send,
    ) {
        let len = len.max(1);
        if self.pool.is_none() || data.len() <= len {
            data.chunks_mut(len).enumerate().for_each(|(i, chunk)| work(i, chunk));
        } else {
            data.par_chunks_mut(len).enumerate().for_each(|(i, chunk)| work(i, chunk));
        }
    }

    /// As [`for_each_chunk`](Self::for_each_chunk), with a piece of `scratch` of `scratch_len` elements for each
    /// thread; `scratch` must hold [`threads`](Self::threads) of them. Chunks are dealt out in contiguous runs.
    pub fn for_each_chunk_with<T: Send, S: Send>(
        &self,
        data: &mut [T],
        len: usize,
        scratch: &mut [S],
        scratch_len: usize,
        work: impl Fn(usize, &mut [T], &mut [S]) + Sync + Send,
    ) {
        let len = len.max(1);
        let chunks = data.len().div_ceil(len);
        let runs = self.threads.min(chunks).max(1);
        if self.pool.is_none() || runs == 1 {
            let scratch = &mut scratch[..scratch_len];
            data.chunks_mut(len).enumerate().for_each(|(i, chunk)| work(i, chunk, scratch));
            return;
        }
        let per_run = chunks.div_ceil(runs);
        data.par_chunks_mut(per_run * len)
            .zip(scratch.par_chunks_mut(scratch_len.max(1)))
            .enumerate()
            .for_each(|(run, (data, scratch))| {
                let scratch = if scratch_len == 0 { &mut [][..] } else { scratch };
                for (i, chunk) in data.chunks_mut(len).enumerate() {
                    work(run * per_run + i, chunk, scratch);
                }
            });
    }
}

impl mnnq_kernels::parallel::Executor for Parallel {
    fn threads(&self) -> usize {
        self.threads
    }

    /// Threads that are late find their call taken back and done by the caller, so that nobody waits for a thread to
    /// wake up; and nothing is allocated.
    fn run(&self, body: &(dyn Fn() + Sync)) {
        match &self.pool {
            Some(pool) => pool.install(|| spread(self.threads, body)),
            None => body(),
        }
    }
}

/// Offers `count` calls of `body` to the threads of the current pool.
fn spread(count: usize, body: &(dyn Fn() + Sync)) {
    if count <= 1 {
        return body();
    }
    let others = count / 2;
    rayon::join(|| spread(count - others, body), || spread(others, body));
}
