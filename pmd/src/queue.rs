//! A queue of a storage device in service, as those see it who poll it and who control it.
//!
//! Devices make queues of their own kinds, and the back-end serves them without knowing which. This
//! room is where the two meet.

use std::fmt::Debug;
use std::sync::Arc;

use vvu::memory::MemTable;
use vvu::notify::Call;

use crate::vring::Moved;
use crate::wake::{Kicks, Quiet, Watch};

/// A queue in service. All of this happens on its worker's thread, but what says otherwise.
pub trait StorageQueue: Debug + Send + 'static {
    /// What it has of the memory beside the ring. Made and dropped by who controls it, who has
    /// time.
    type Spare: Send + 'static;

    /// One round, in bounded time: takes what the driver made available, and gives back what is
    /// done. Returns whether there was anything to do.
    fn poll(&mut self) -> bool;

    /// Whether a round has to look at it.
    fn is_polled(&self) -> bool;

    /// Whether it had nothing for long and waits for its kick.
    fn is_resting(&self) -> bool;

    /// Some time went by: rests if it had nothing for long, and nothing is under way.
    fn rest(&mut self);

    /// Asks for kicks, because the worker is about to sleep.
    fn enable_kicks(&mut self) -> Quiet;

    /// These kicks came, or the worker does not sleep any more.
    fn kicked(&mut self, kicks: &Kicks);

    /// Is looked at in each round, and asks for no kicks.
    fn disable_kicks(&mut self);

    /// Takes nothing more until [`StorageQueue::resume`], but what was in flight when the ring began.
    /// Returns how many chains are kept, or more if some of those are still to be taken.
    fn drain(&mut self) -> usize;

    /// Takes chains again.
    fn resume(&mut self);

    /// The front-end's wish that the ring be processed.
    fn set_enabled(&mut self, enabled: bool);

    /// Another kick. Returns the old one.
    fn set_kick(&mut self, watch: Watch) -> Watch;

    /// Another call. Returns the old one.
    fn set_call(&mut self, call: Call) -> Call;

    /// Another way to report errors. Returns the old one.
    fn set_err(&mut self, err: Call) -> Call;

    /// What keeps memory mapped beside the ring, for a ring of `size` entries in `memory`. Not on
    /// the worker's thread.
    fn spare(size: u16, memory: &Arc<MemTable>) -> Self::Spare;

    /// Moves the ring to a new memory, when no chains are kept. Returns the old one, which keeps
    /// the old memory mapped.
    fn set_memory(&mut self, moved: Moved, spare: Self::Spare) -> (Moved, Self::Spare);

    /// Where the ring would go on.
    fn base(&self) -> u32;

    /// The ring is not served any more.
    fn stopped(&self);
}
