//! What a model says about itself to people.

use super::link::LinkState;

/// A model's state, as it was when it was asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ModelStatus {
    /// Who is there.
    pub link: LinkState,
    /// virtio's device_status.
    pub device_status: u8,
    /// Connections so far.
    pub generation: u32,
    /// Counters.
    pub counters: Counters,
    /// Why a message was refused or a connection ended last.
    pub last_refusal: Option<String>,
}

/// What was counted since the model exists.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Messages from front-ends that the driver got.
    pub delivered: u64,
    /// Messages of the driver that front-ends got.
    pub sent: u64,
    /// Messages of the driver that were for nobody.
    pub discarded: u64,
    /// Messages refused with an answer of the device's own.
    pub refused: u64,
    /// Connections ended because a rule was broken.
    pub violations: u64,
    /// Channels for the driver's requests that were given up, because the front-end broke a rule there
    /// or does not read.
    pub channels_lost: u64,
    /// Times that the device asked for a reset.
    pub broken: u64,
    /// Interrupts of configuration and queues.
    pub interrupts: u64,
    /// Kicks that became interrupts.
    pub kicks: u64,
    /// Doorbells that reached a front-end.
    pub doorbells: u64,
}
