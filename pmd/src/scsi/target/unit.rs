//! A logical unit: what all its initiators see of it, and what they share.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::bdev::{Abilities, Geometry, Limits};

use super::attention::Attention;
use super::gate::Gate;
use super::nexus::{Barrier, Bell, Nexus, NexusId, flags};
use super::reserve::{Access, Reservations};
use super::sense::Sense;

/// Who a unit is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Unit serial number: printable ASCII.
    pub serial: String,
    /// Number of its own in the world, as far as that can be: the low 60 bits of its name (NAA 3).
    pub id: u64,
}

impl Identity {
    /// Longest serial number, in bytes.
    pub const MAX_SERIAL: usize = 64;

    /// Of a unit with this serial number; what is not printable ASCII in it becomes `_`.
    pub fn new(serial: &str) -> Self {
        let printable = |c: char| if c.is_ascii_graphic() { c } else { '_' };
        let serial: String = serial
            .chars()
            .map(printable)
            .take(Self::MAX_SERIAL)
            .collect();
        let id = name_hash(&serial);
        Self { serial, id }
    }
}

/// A number for a name, the same everywhere (FNV-1a).
pub fn name_hash(name: &str) -> u64 {
    name.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// What initiators can switch.
pub(super) mod mode {
    /// WCE: writes may be done before they have reached the medium.
    pub(in super::super) const WRITE_CACHE: u8 = 1;
    /// D_SENSE: sense data in descriptor format.
    pub(in super::super) const DESCRIPTORS: u8 = 2;
    /// SWP: nothing may be written.
    pub(in super::super) const PROTECT: u8 = 4;
}

/// What is shared and changes seldom.
#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) nexuses: Vec<Weak<Nexus>>,
    pub(super) reservations: Reservations,
    /// A change of the reservations is being written down.
    pub(super) saving: bool,
    pub(super) stopped: bool,
}

impl State {
    fn living(&self) -> impl Iterator<Item = Arc<Nexus>> + '_ {
        self.nexuses.iter().filter_map(Weak::upgrade)
    }

    /// `attention` for all nexuses but `except` of which `who` is true.
    pub(super) fn attend(
        &self,
        attention: Attention,
        except: Option<NexusId>,
        who: impl Fn(NexusId) -> bool,
    ) {
        for nexus in self.living() {
            if Some(nexus.id()) != except && who(nexus.id()) {
                nexus.attend(attention);
            }
        }
    }

    /// The tasks of the nexuses of which `who` is true must end.
    pub(super) fn abort(&self, who: impl Fn(NexusId) -> bool) -> Barrier {
        let barrier = Barrier::default();
        for nexus in self.living().filter(|nexus| who(nexus.id())) {
            nexus.bell().abort(&barrier);
        }
        barrier
    }
}

/// A logical unit, shared by everybody who uses it.
#[derive(Debug)]
pub struct Unit {
    identity: Identity,
    geometry: Geometry,
    abilities: Abilities,
    /// Length of a logical block, as a power of two.
    shift: u32,
    blocks: AtomicU64,
    modes: AtomicU8,
    gate: Arc<Gate>,
    /// Whether reservations are written down.
    kept: bool,
    state: Mutex<State>,
}

impl Unit {
    /// A unit on a disk of `bytes` bytes. With `kept`, its reservations were those, and changes
    /// are saved.
    pub fn new(
        identity: Identity,
        geometry: Geometry,
        abilities: Abilities,
        bytes: u64,
        kept: Option<Reservations>,
    ) -> Arc<Self> {
        let shift = geometry.logical_block.max(1).ilog2();
        let modes = if abilities.write_back {
            mode::WRITE_CACHE
        } else {
            0
        };
        Arc::new(Self {
            identity,
            geometry,
            abilities,
            shift,
            blocks: AtomicU64::new(bytes >> shift),
            modes: AtomicU8::new(modes),
            gate: Arc::default(),
            kept: kept.is_some(),
            state: Mutex::new(State {
                reservations: kept.unwrap_or_default(),
                ..State::default()
            }),
        })
    }

    /// A nexus for `id`, whose target has this relative port identifier. Its initiator hears of a
    /// power on first.
    pub fn attach(self: &Arc<Self>, id: NexusId, port: u16, bell: Arc<dyn Bell>) -> Arc<Nexus> {
        let mut state = self.state();
        let flags = Attention::PowerOn.bit() | self.hindrances(&state, id);
        let nexus = Arc::new(Nexus::new(Arc::clone(self), id, port, flags, bell));
        state.nexuses.retain(|nexus| nexus.strong_count() > 0);
        state.nexuses.push(Arc::downgrade(&nexus));
        nexus
    }

    /// Who it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// What writers pass.
    pub fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    /// Number of logical blocks.
    #[inline]
    pub fn blocks(&self) -> u64 {
        self.blocks.load(Ordering::Relaxed)
    }

    /// Length of a logical block in bytes.
    pub fn block(&self) -> u32 {
        1 << self.shift
    }

    /// Length of a logical block as a power of two.
    #[inline]
    pub(super) fn shift(&self) -> u32 {
        self.shift
    }

    pub(super) fn geometry(&self) -> Geometry {
        self.geometry
    }

    pub(super) fn abilities(&self) -> Abilities {
        self.abilities
    }

    /// Whether blocks can be unmapped, and how many bytes at once.
    #[inline]
    pub(super) fn thin(&self) -> Option<Limits> {
        if self.abilities.read_only {
            None
        } else {
            self.abilities.discard
        }
    }

    #[inline]
    pub(super) fn modes(&self) -> u8 {
        self.modes.load(Ordering::Relaxed)
    }

    /// Whether each write must reach the medium before it is done.
    #[inline]
    pub(super) fn writes_through(&self) -> bool {
        self.modes() & mode::WRITE_CACHE == 0
    }

    /// Whether changes of reservations are written down.
    pub(super) fn is_kept(&self) -> bool {
        self.kept
    }

    /// Sense data of this unit in the format that was chosen.
    pub fn sense_bytes(&self, sense: &Sense) -> Vec<u8> {
        sense.bytes(self.modes() & mode::DESCRIPTORS != 0)
    }

    /// The disk has `bytes` bytes now. All initiators hear of it. False if that changed nothing.
    pub fn resize(&self, bytes: u64) -> bool {
        let blocks = bytes >> self.shift;
        let changed = self.blocks.swap(blocks, Ordering::Relaxed) != blocks;
        if changed {
            let state = self.state();
            state.attend(Attention::CapacityChanged, None, |_| true);
            for nexus in state.living() {
                nexus.bell().changed(Attention::CapacityChanged);
            }
        }
        changed
    }

    /// LOGICAL UNIT RESET by `by`: all tasks must end; all others hear of it; reservations stay.
    pub fn reset(&self, by: NexusId) -> Barrier {
        let mut state = self.state();
        state.stopped = false;
        let barrier = state.abort(|_| true);
        state.attend(Attention::UnitReset, None, |id| id != by);
        state.attend(Attention::PowerOn, None, |id| id == by);
        self.set_modes_with(&state, self.initial_modes());
        barrier
    }

    /// Its modes when nobody has switched any.
    pub(super) fn initial_modes(&self) -> u8 {
        if self.abilities.write_back {
            mode::WRITE_CACHE
        } else {
            0
        }
    }

    /// `by` switches modes; the others hear of it.
    pub(super) fn set_modes(&self, modes: u8, by: NexusId) {
        let state = self.state();
        if self.modes() != modes {
            state.attend(Attention::ModeChanged, Some(by), |_| true);
            self.set_modes_with(&state, modes);
        }
    }

    fn set_modes_with(&self, state: &State, modes: u8) {
        self.modes.store(modes, Ordering::Relaxed);
        self.refresh(state);
    }

    /// The unit is stopped, or started.
    pub(super) fn set_stopped(&self, stopped: bool) {
        let mut state = self.state();
        state.stopped = stopped;
        self.refresh(&state);
    }

    /// Relative identifiers of the ports that the unit is reached through, in order.
    pub(super) fn ports(&self) -> Vec<u16> {
        let state = self.state();
        let mut ports: Vec<u16> = state.living().map(|nexus| nexus.port()).collect();
        ports.sort_unstable();
        ports.dedup();
        ports
    }

    /// The relative port identifier of `id`, if it is attached.
    pub(super) fn port_of(state: &State, id: NexusId) -> Option<u16> {
        let mut living = state.living();
        living.find(|nexus| nexus.id() == id).map(|n| n.port())
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells all nexuses what they may not do now.
    pub(super) fn refresh(&self, state: &State) {
        for nexus in state.living() {
            let which =
                flags::READ_CONFLICTS | flags::WRITE_CONFLICTS | flags::STOPPED | flags::PROTECTED;
            nexus.set_flags(which, self.hindrances(state, nexus.id()));
        }
    }

    fn hindrances(&self, state: &State, id: NexusId) -> u32 {
        let when = |on, flag| if on { flag } else { 0 };
        let access = state.reservations.access(id);
        let protect = self.abilities.read_only || self.modes() & mode::PROTECT != 0;
        when(access == Access::Nothing, flags::READ_CONFLICTS)
            | when(access != Access::All, flags::WRITE_CONFLICTS)
            | when(state.stopped, flags::STOPPED)
            | when(protect, flags::PROTECTED)
    }
}
