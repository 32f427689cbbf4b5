//! Unit attention conditions (SAM-6, 5.14): what an initiator did not do itself and must hear of,
//! one for each thing, told at its next command.

use super::sense::{Key, Sense};

/// What happened. The order is that in which they are told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Attention {
    /// POWER ON, RESET, OR BUS DEVICE RESET OCCURRED: the unit is new to the initiator.
    PowerOn,
    /// BUS DEVICE RESET FUNCTION OCCURRED: somebody reset the unit.
    UnitReset,
    /// I_T NEXUS LOSS OCCURRED: the connection began anew.
    NexusLoss,
    /// COMMANDS CLEARED BY ANOTHER INITIATOR.
    CommandsCleared,
    /// RESERVATIONS PREEMPTED.
    ReservationsPreempted,
    /// RESERVATIONS RELEASED.
    ReservationsReleased,
    /// REGISTRATIONS PREEMPTED.
    RegistrationsPreempted,
    /// CAPACITY DATA HAS CHANGED.
    CapacityChanged,
    /// MODE PARAMETERS CHANGED.
    ModeChanged,
    /// REPORTED LUNS DATA HAS CHANGED.
    LunsChanged,
}

impl Attention {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::PowerOn,
        Self::UnitReset,
        Self::NexusLoss,
        Self::CommandsCleared,
        Self::ReservationsPreempted,
        Self::ReservationsReleased,
        Self::RegistrationsPreempted,
        Self::CapacityChanged,
        Self::ModeChanged,
        Self::LunsChanged,
    ];

    /// Additional sense code and qualifier.
    pub fn code(self) -> u16 {
        match self {
            Self::PowerOn => 0x2900,
            Self::UnitReset => 0x2903,
            Self::NexusLoss => 0x2907,
            Self::CommandsCleared => 0x2f00,
            Self::ReservationsPreempted => 0x2a03,
            Self::ReservationsReleased => 0x2a04,
            Self::RegistrationsPreempted => 0x2a05,
            Self::CapacityChanged => 0x2a09,
            Self::ModeChanged => 0x2a01,
            Self::LunsChanged => 0x3f0e,
        }
    }

    /// What the initiator is told.
    pub fn sense(self) -> Sense {
        Sense::new(Key::UnitAttention, self.code())
    }

    /// Its bit among the flags of a nexus.
    pub(super) const fn bit(self) -> u32 {
        1 << self as u8
    }

    /// The one to tell first of those in `flags`.
    pub(super) fn first(flags: u32) -> Option<Self> {
        Self::ALL.into_iter().find(|one| flags & one.bit() != 0)
    }
}
