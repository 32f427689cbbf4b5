//! PERSISTENT RESERVE IN (SPC-5, 6.16): what is registered and reserved.

use super::super::answer::Answer;
use super::super::nexus::NexusId;
use super::super::unit::Unit;
use super::Reservations;

/// The name of an initiator's port, in the form of a SAS one: these need no more than a number.
fn transport_id(initiator: u64) -> [u8; 24] {
    let mut id = [0; 24];
    // Protocol identifier 6; the address is one that was assigned locally (NAA 3).
    id[0] = 6;
    id[4..12].copy_from_slice(&(initiator & !(0xf << 60) | 3 << 60).to_be_bytes());
    id
}

/// Answers the service action, with no more than `most` bytes.
pub(in super::super) fn reserve_in(unit: &Unit, action: u8, most: u64) -> Answer {
    let state = unit.state();
    let all = &state.reservations;
    let data = match action {
        0 => all.keys(),
        1 => all.reservation(),
        2 => all.capabilities(unit.is_kept()),
        _ => all.full_status(|nexus| Unit::port_of(&state, nexus)),
    };
    drop(state);
    Answer::with_data(data, most)
}

impl Reservations {
    /// A list behind the generation and its own length.
    fn listed(&self, list: &[u8]) -> Vec<u8> {
        let mut data = self.generation.to_be_bytes().to_vec();
        data.extend((list.len() as u32).to_be_bytes());
        data.extend(list);
        data
    }

    fn keys(&self) -> Vec<u8> {
        let keys = self.registrations.iter().map(|one| one.key.to_be_bytes());
        self.listed(&keys.flatten().collect::<Vec<u8>>())
    }

    fn reservation(&self) -> Vec<u8> {
        let Some(holding) = self.holding else {
            return self.listed(&[]);
        };
        // None in particular if all who registered hold it.
        let key = holding.nexus.and_then(|nexus| self.key(nexus));
        let mut one = key.unwrap_or(0).to_be_bytes().to_vec();
        one.extend([0, 0, 0, 0, 0, holding.kind as u8, 0, 0]);
        self.listed(&one)
    }

    /// Kept through a loss of power or not, types told, all six of them.
    fn capabilities(&self, kept: bool) -> Vec<u8> {
        let active = u8::from(self.through_power_loss);
        vec![0, 8, u8::from(kept), 0x80 | active, 0xea, 1, 0, 0]
    }

    fn full_status(&self, port: impl Fn(NexusId) -> Option<u16>) -> Vec<u8> {
        let mut list = Vec::new();
        for one in &self.registrations {
            let holds = self.holds(one.nexus);
            let kind = self.holding.filter(|_| holds).map_or(0, |h| h.kind as u8);
            list.extend(one.key.to_be_bytes());
            list.extend([0, 0, 0, 0, u8::from(holds), kind, 0, 0, 0, 0]);
            list.extend(port(one.nexus).unwrap_or(0).to_be_bytes());
            let id = transport_id(one.nexus.initiator);
            list.extend((id.len() as u32).to_be_bytes());
            list.extend(id);
        }
        self.listed(&list)
    }
}
