//! What a device must do: statements 17 to 36, and the placement of statement 9.
//!
//! A case gets a target, makes devices there and plays both the driver and the front-end.

mod channel;
mod connection;
mod front_ends;
mod hostile;
mod identity;
mod inflight;
mod memory;
mod messages;
mod notify;
mod running;

use crate::target::Target;

/// A case's name and what it does.
type Case = (&'static str, fn(&dyn Target));

/// In the order of the checklist.
pub(crate) const CASES: &[Case] = crate::cases! {
    memory: c09_placement;
    identity: c17_capabilities c18_configuration;
    connection:
        c19_configuration_interrupts
        c20_early_front_end
        c21_nine_events_in_four_states
        c21_any_sequence_of_events
        c21_sent_to_nobody;
    messages:
        c22_action_before_message
        c22_order
        c22_front_end_that_does_not_read;
    hostile: c23_hostile_messages c23_random_messages c23_file_that_shrinks;
    messages: c24_buffer_too_small c24_corrupt_ring;
    notify:
        c25_doorbells
        c26_replacement_under_a_storm
        c27_kicks
        c28_notification_selector;
    messages: c29_masked_features;
    front_ends: c30_front_ends_of_qemu;
    memory: c31_memory_replaced c32_revocation;
    messages: c33_refusals c34_memory_slots_not_offered;
    inflight: c35_inflight_buffers c35_hostile_inflight_buffers;
    channel: c36_backend_channel c36_hostile_channels;
};

/// Those that only a machine with a processor can show.
pub(crate) const MACHINE_CASES: &[Case] = crate::cases! {
    running:
        c26_replacement_while_a_processor_rings
        c31_memory_replaced_while_a_processor_reads;
};
