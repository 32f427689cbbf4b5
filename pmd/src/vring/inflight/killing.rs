//! Ends the thread's work at the store that a test names, as SIGKILL would: nothing is undone.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

/// What a killed piece of work throws. Nobody reports it as a panic.
struct Killed;

thread_local! {
    /// Stores that may still be made.
    static LEFT: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// Called before each store.
pub(in crate::vring) fn about_to_store() {
    LEFT.with(|left| match left.get() {
        0 => resume_unwind(Box::new(Killed)),
        usize::MAX => {}
        more => left.set(more - 1),
    });
}

/// Does `work` up to the store before which `stores` others are made. `None` if that came.
pub(super) fn killed_after<T>(stores: usize, work: impl FnOnce() -> T) -> Option<T> {
    LEFT.with(|left| left.set(stores));
    let result = catch_unwind(AssertUnwindSafe(work));
    LEFT.with(|left| left.set(usize::MAX));
    match result {
        Ok(done) => Some(done),
        Err(what) if what.is::<Killed>() => None,
        Err(what) => resume_unwind(what),
    }
}
