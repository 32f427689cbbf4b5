//! What others may know of a session while it runs.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

/// Counters and state of a session, written by it and readable from any thread.
#[derive(Debug, Default)]
pub struct Status {
    connected: AtomicBool,
    connections: AtomicU64,
    messages: AtomicU64,
    nacks: AtomicU64,
    violations: AtomicU64,
    running_rings: AtomicU64,
    features: AtomicU64,
    last_error: Mutex<Option<String>>,
}

/// A [`Status`] at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StatusReport {
    /// Whether a front-end is there.
    pub connected: bool,
    /// Connections so far.
    pub connections: u64,
    /// Requests so far.
    pub messages: u64,
    /// Requests refused.
    pub nacks: u64,
    /// Connections ended because the front-end broke the protocol.
    pub violations: u64,
    /// Rings that run now.
    pub running_rings: u64,
    /// Features in force.
    pub features: u64,
    /// The last thing that went wrong, in words.
    pub last_error: Option<String>,
}

impl Status {
    /// What is known now.
    pub fn report(&self) -> StatusReport {
        let last_error = self
            .last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        StatusReport {
            connected: self.connected.load(Ordering::Relaxed),
            connections: self.connections.load(Ordering::Relaxed),
            messages: self.messages.load(Ordering::Relaxed),
            nacks: self.nacks.load(Ordering::Relaxed),
            violations: self.violations.load(Ordering::Relaxed),
            running_rings: self.running_rings.load(Ordering::Relaxed),
            features: self.features.load(Ordering::Relaxed),
            last_error,
        }
    }

    pub(super) fn connected(&self) {
        self.connections.fetch_add(1, Ordering::Relaxed);
        self.connected.store(true, Ordering::Relaxed);
    }

    pub(super) fn disconnected(&self) {
        self.connected.store(false, Ordering::Relaxed);
        self.features.store(0, Ordering::Relaxed);
    }

    pub(super) fn message(&self) {
        self.messages.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn nack(&self, error: String) {
        self.nacks.fetch_add(1, Ordering::Relaxed);
        self.error(error);
    }

    pub(super) fn violation(&self, error: String) {
        self.violations.fetch_add(1, Ordering::Relaxed);
        self.error(error);
    }

    pub(super) fn error(&self, error: String) {
        *self
            .last_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    pub(super) fn ring_started(&self) {
        self.running_rings.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn ring_stopped(&self) {
        self.running_rings.fetch_sub(1, Ordering::Relaxed);
    }

    pub(super) fn features(&self, features: u64) {
        self.features.store(features, Ordering::Relaxed);
    }
}
