//! One initiator's way to one unit through one target (an I_T_L nexus): what it must be told, and
//! what it may not do at the moment.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use super::attention::Attention;
use super::unit::Unit;

/// What a nexus has that commands may not be done with: attentions in the low half.
pub(super) mod flags {
    use super::super::attention::Attention;

    /// Something must be told first.
    pub(in super::super) const ATTENTIONS: u32 = (1 << Attention::ALL.len()) - 1;
    /// Somebody else's reservation forbids reading.
    pub(in super::super) const READ_CONFLICTS: u32 = 1 << 16;
    /// Somebody else's reservation forbids writing.
    pub(in super::super) const WRITE_CONFLICTS: u32 = 1 << 17;
    /// The unit was stopped.
    pub(in super::super) const STOPPED: u32 = 1 << 18;
    /// The unit may not be written.
    pub(in super::super) const PROTECTED: u32 = 1 << 19;
}

/// Whose a nexus is: the same after a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NexusId {
    /// The initiator's port: its front-end.
    pub initiator: u64,
    /// The target that the front-end reaches the unit through.
    pub target: u8,
}

/// A nexus as whoever serves it sees it: where it hears what concerns its tasks and its initiator.
pub trait Bell: Send + Sync {
    /// All tasks begun so far must end; each holds `barrier` until then.
    fn abort(&self, barrier: &Barrier);

    /// Something about the unit is different now, in words of a unit attention.
    fn changed(&self, attention: Attention);
}

/// Held by every task that must have ended, and by who waits for that.
#[derive(Debug, Clone, Default)]
pub struct Barrier(Arc<()>);

impl Barrier {
    /// Whether only who asks still holds it. Then everything that others did is seen.
    pub fn is_clear(&self) -> bool {
        let clear = Arc::strong_count(&self.0) == 1;
        // Pairs with the release of who let go of it.
        fence(Ordering::Acquire);
        clear
    }
}

/// See the top of this file.
pub struct Nexus {
    unit: Arc<Unit>,
    id: NexusId,
    /// Relative target port identifier.
    port: u16,
    flags: AtomicU32,
    bell: Arc<dyn Bell>,
}

impl Nexus {
    pub(super) fn new(
        unit: Arc<Unit>,
        id: NexusId,
        port: u16,
        flags: u32,
        bell: Arc<dyn Bell>,
    ) -> Self {
        Self {
            unit,
            id,
            port,
            flags: AtomicU32::new(flags),
            bell,
        }
    }

    /// The unit at its end.
    #[inline]
    pub fn unit(&self) -> &Arc<Unit> {
        &self.unit
    }

    /// Whose it is.
    pub fn id(&self) -> NexusId {
        self.id
    }

    /// Relative target port identifier of its target.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Its initiator shall hear of this.
    pub fn attend(&self, attention: Attention) {
        self.flags.fetch_or(attention.bit(), Ordering::AcqRel);
    }

    /// Whether there is something to be told.
    pub fn has_attention(&self) -> bool {
        self.flags() & flags::ATTENTIONS != 0
    }

    #[inline]
    pub(super) fn flags(&self) -> u32 {
        self.flags.load(Ordering::Acquire)
    }

    /// Takes the attention that is to be told first.
    pub(super) fn take_attention(&self) -> Option<Attention> {
        let first = Attention::first(self.flags())?;
        self.forget(first);
        Some(first)
    }

    /// This was told, or needs not be told any more.
    pub(super) fn forget(&self, attention: Attention) {
        self.flags.fetch_and(!attention.bit(), Ordering::AcqRel);
    }

    /// Of the flags in `which`, those in `on` are set and the others are not.
    pub(super) fn set_flags(&self, which: u32, on: u32) {
        self.flags.fetch_and(!which | on, Ordering::AcqRel);
        self.flags.fetch_or(which & on, Ordering::AcqRel);
    }

    /// Who serves it.
    pub(super) fn bell(&self) -> &dyn Bell {
        &*self.bell
    }
}

impl std::fmt::Debug for Nexus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Nexus")
            .field("id", &self.id)
            .field("port", &self.port)
            .field("flags", &self.flags)
            .finish_non_exhaustive()
    }
}
