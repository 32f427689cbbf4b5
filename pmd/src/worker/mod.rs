//! One pinned polling thread: polls what it was given, takes mail at the quiescent point, sleeps
//! when idle, if it may ([`Polling`]).
//!
//! Control reaches a worker's state only through [`Worker::call`]: a closure is posted, the worker
//! runs it between two rounds, when no burst is in flight, and the caller waits for the answer
//! with a deadline. So the state needs no lock, and when a call returns, what it changed is in
//! force. This room does not know what is polled: see [`Poller`].

#[cfg(test)]
mod tests;
mod thread;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_queue::SegQueue;
use thiserror::Error;

use crate::stats::{WorkerSnapshot, WorkerStats};
use crate::wake::{Kicks, Quiet, Waker};

/// What a worker polls.
pub trait Poller: Send + 'static {
    /// One round: does what there is to do now, in bounded time. Returns whether there was
    /// anything. `now` counts seconds.
    fn poll(&mut self, now: u32) -> bool;

    /// The worker is about to sleep: asks for kicks and looks once more.
    fn enable_kicks(&mut self) -> Quiet;

    /// Everything is polled, whatever it was before, and asked for no kicks.
    fn disable_kicks(&mut self);

    /// Some time went by: what had nothing for a while may ask for kicks instead of being polled.
    fn rest(&mut self);

    /// These kicks came, or none: the worker polls again what it asked for kicks before a sleep,
    /// and what rested and was kicked.
    fn kicked(&mut self, kicks: &Kicks);

    /// How much rests.
    fn resting(&self) -> usize;

    /// Whether other threads left something to do, apart from mail.
    fn has_mail(&self) -> bool;
}

/// When a worker sleeps, and what it looks at when it does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Polling {
    /// It never sleeps, and never asks for a kick: each round looks at everything.
    Always,
    /// It polls for a while after the last work, for as long as that pays, and sleeps then. What
    /// had nothing for longer is left to its kick even while there is other work.
    #[default]
    Adaptive,
    /// It sleeps when a round finds nothing.
    Interrupt,
}

/// Why a worker cannot be had, or does not answer.
#[derive(Debug, Error)]
pub enum WorkerError {
    /// The CPU is not there, or not for us.
    #[error("cannot run on CPU {cpu}: {source}; this process may use {allowed}")]
    Cpu {
        /// CPU asked for.
        cpu: usize,
        /// CPUs that there are, in words.
        allowed: String,
        /// The kernel's reason.
        source: std::io::Error,
    },
    /// Two workers on one CPU would only take turns.
    #[error("CPU {0} is listed twice: one polling worker takes a whole CPU")]
    Twice(usize),
    /// No CPU at all.
    #[error("no CPU given: at least one worker is needed")]
    NoCpu,
    /// The kernel has no thread, or no descriptors, for us.
    #[error("cannot start a worker: {0}")]
    Start(#[from] std::io::Error),
    /// The worker did not answer in time.
    #[error("the worker on CPU {0} does not answer")]
    Gone(usize),
}

/// How long a worker may take to answer. It answers between two rounds, after some microseconds;
/// more than this means that the thread is dead or its CPU is taken away.
pub const DEADLINE: Duration = Duration::from_secs(5);

type Mail<P> = Box<dyn FnOnce(&mut P) + Send>;

/// What a worker's thread and its handles share.
struct Post<P> {
    mail: SegQueue<Mail<P>>,
    stop: AtomicBool,
    /// The thread is gone: nobody reads mail any more.
    ended: AtomicBool,
    waker: Arc<Waker>,
    stats: Arc<WorkerStats>,
}

impl<P> Post<P> {
    /// Throws unread mail away. Who waits for an answer to it learns that there is none.
    fn discard(&self) {
        while self.mail.pop().is_some() {}
    }
}

/// A worker. Dropping it stops and joins the thread.
pub struct Worker<P: Poller> {
    cpu: usize,
    post: Arc<Post<P>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl<P: Poller> Worker<P> {
    /// Starts a thread on `cpu` that polls `poller`, sleeps as `polling` says and is woken by
    /// `waker`.
    pub fn start(
        cpu: usize,
        poller: P,
        waker: Arc<Waker>,
        stats: Arc<WorkerStats>,
        polling: Polling,
    ) -> Result<Self, WorkerError> {
        let post = Arc::new(Post {
            mail: SegQueue::new(),
            stop: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            waker,
            stats,
        });
        let (started, answer) = mpsc::sync_channel(1);
        let theirs = Arc::clone(&post);
        let thread = std::thread::Builder::new()
            .name(format!("worker-{cpu}"))
            .spawn(move || {
                let pinned = thread::pin(cpu);
                let go = pinned.is_ok();
                let _ = started.send(pinned);
                if go {
                    thread::run(poller, &theirs, polling);
                }
            })?;
        answer.recv().map_err(|_| WorkerError::Gone(cpu))??;
        Ok(Self {
            cpu,
            post,
            thread: Mutex::new(Some(thread)),
        })
    }

    /// Runs `what` on the worker's state between two rounds and returns its result.
    pub fn call<R: Send + 'static>(
        &self,
        what: impl FnOnce(&mut P) -> R + Send + 'static,
    ) -> Result<R, WorkerError> {
        let (answer, result) = mpsc::sync_channel(1);
        self.post.mail.push(Box::new(move |poller| {
            // Whoever stopped waiting does not want it any more.
            let _ = answer.send(what(poller));
        }));
        self.post.waker.wake();
        // Pairs with the thread's end, which sets the mark first and discards then: one of us
        // finds this mail.
        if self.post.ended.load(Ordering::SeqCst) {
            self.post.discard();
        }
        result
            .recv_timeout(DEADLINE)
            .map_err(|_| WorkerError::Gone(self.cpu))
    }

    /// What leaves mail for this worker.
    pub fn sender(&self) -> Sender<P> {
        Sender(Arc::clone(&self.post))
    }

    /// What wakes this worker.
    pub fn waker(&self) -> &Arc<Waker> {
        &self.post.waker
    }

    /// The worker's counters.
    pub fn stats(&self) -> WorkerSnapshot {
        WorkerSnapshot::of(self.cpu, &self.post.stats)
    }
}

/// Leaves mail for a worker, from any thread, without waiting for what comes of it.
pub struct Sender<P>(Arc<Post<P>>);

impl<P: Poller> Sender<P> {
    /// Runs `what` on the worker's state between two rounds; not at all if the worker is gone.
    pub fn post(&self, what: impl FnOnce(&mut P) + Send + 'static) {
        self.0.mail.push(Box::new(what));
        self.0.waker.wake();
        // As in `Worker::call`.
        if self.0.ended.load(Ordering::SeqCst) {
            self.0.discard();
        }
    }
}

impl<P: Poller> Worker<P> {
    /// Stops and joins the thread. Calls fail from then on.
    pub fn stop(&self) {
        self.post.stop.store(true, Ordering::Release);
        self.post.waker.wake();
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take() {
            // A thread that panicked has said so itself.
            let _ = thread.join();
        }
    }
}

impl<P: Poller> Drop for Worker<P> {
    fn drop(&mut self) {
        self.stop();
    }
}

impl<P: Poller> std::fmt::Debug for Worker<P> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Worker").field("cpu", &self.cpu).finish()
    }
}
