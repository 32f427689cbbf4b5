//! Which frames a guest wants to see (VIRTIO 1.2, 5.1.6.5.1 to 5.1.6.5.3), as its control queue
//! has it.

/// Most addresses of a kind that are kept; of more, all are taken.
pub const MAX_ADDRESSES: usize = 64;

/// Where the bit of a VLAN is.
const VLANS: usize = 4096;

/// Addresses to take, of one kind.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Addresses {
    /// In order.
    list: Vec<[u8; 6]>,
    overflow: bool,
}

impl Addresses {
    /// From a table as the driver wrote it.
    pub fn new(table: &[[u8; 6]]) -> Self {
        if table.len() > MAX_ADDRESSES {
            return Self {
                list: Vec::new(),
                overflow: true,
            };
        }
        let mut list = table.to_vec();
        list.sort_unstable();
        Self {
            list,
            overflow: false,
        }
    }

    fn has(&self, address: &[u8; 6]) -> bool {
        self.overflow || self.list.binary_search(address).is_ok()
    }
}

/// VLANs to take.
#[derive(Clone, PartialEq, Eq)]
pub struct Vlans(Box<[u64; VLANS / 64]>);

impl std::fmt::Debug for Vlans {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ids = (0..VLANS as u16).filter(|id| self.has(*id));
        f.debug_set().entries(ids).finish()
    }
}

impl Default for Vlans {
    fn default() -> Self {
        Self(Box::new([0; VLANS / 64]))
    }
}

impl Vlans {
    /// Takes `id`, or takes it no longer. False if there is no such VLAN.
    pub fn set(&mut self, id: u16, wanted: bool) -> bool {
        let Some(word) = self.0.get_mut(usize::from(id / 64)) else {
            return false;
        };
        let bit = 1 << (id % 64);
        *word = if wanted { *word | bit } else { *word & !bit };
        true
    }

    fn has(&self, id: u16) -> bool {
        let word = self.0.get(usize::from(id / 64));
        word.is_some_and(|word| word & (1 << (id % 64)) != 0)
    }
}

/// Modes that the driver turns on and off.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Modes {
    /// Everything, whatever else is on.
    pub promiscuous: bool,
    /// All groups, in the table or not.
    pub all_multicast: bool,
    /// All that is for one, in the table or not.
    pub all_unicast: bool,
    /// No groups, but broadcast.
    pub no_multicast: bool,
    /// Nothing that is for one.
    pub no_unicast: bool,
    /// No broadcast.
    pub no_broadcast: bool,
}

/// A guest's wishes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// By address; if absent, frames to all addresses are taken.
    pub modes: Option<Modes>,
    /// The guest's own address.
    pub mac: [u8; 6],
    /// Other addresses of its own.
    pub unicast: Addresses,
    /// Groups that it is in.
    pub multicast: Addresses,
    /// By VLAN; if absent, all are taken.
    pub vlans: Option<Vlans>,
}

impl Filter {
    /// Whether the guest wants the frame that begins with `head`.
    #[inline]
    pub fn wants(&self, head: &[u8]) -> bool {
        match &self.modes {
            Some(modes) if modes.promiscuous => true,
            Some(modes) => self.wants_vlan(head) && self.wants_address(modes, head),
            None => self.wants_vlan(head),
        }
    }

    fn wants_address(&self, modes: &Modes, head: &[u8]) -> bool {
        let Some(to) = head.first_chunk::<6>() else {
            return false;
        };
        if *to == [0xff; 6] {
            !modes.no_broadcast
        } else if to[0] & 1 != 0 {
            !modes.no_multicast && (modes.all_multicast || self.multicast.has(to))
        } else {
            !modes.no_unicast && (modes.all_unicast || *to == self.mac || self.unicast.has(to))
        }
    }

    /// By the outer tag. One of VLAN 0 says only how urgent a frame is.
    fn wants_vlan(&self, head: &[u8]) -> bool {
        let Some(vlans) = &self.vlans else {
            return true;
        };
        match head.get(12..16) {
            Some(&[0x81, 0x00, high, low]) => {
                let id = u16::from_be_bytes([high & 0x0f, low]);
                id == 0 || vlans.has(id)
            }
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 2];
    const GROUP: [u8; 6] = [1, 0, 0x5e, 0, 0, 1];
    const ALL: [u8; 6] = [0xff; 6];

    fn filter() -> Filter {
        Filter {
            modes: Some(Modes::default()),
            mac: OWN,
            unicast: Addresses::default(),
            multicast: Addresses::default(),
            vlans: Some(Vlans::default()),
        }
    }

    /// Whether it takes its own, another's, a group's and everybody's.
    fn takes(filter: &Filter) -> [bool; 4] {
        [OWN, OTHER, GROUP, ALL].map(|to| filter.wants(&[&to[..], &[0; 6], &[8, 0]].concat()))
    }

    fn with(modes: Modes) -> [bool; 4] {
        takes(&Filter {
            modes: Some(modes),
            ..filter()
        })
    }

    #[test]
    fn modes_say_who_is_heard() {
        let off = Modes::default();
        assert_eq!(with(off), [true, false, false, true]);
        let promiscuous = Modes {
            promiscuous: true,
            no_unicast: true,
            no_broadcast: true,
            ..off
        };
        assert_eq!(with(promiscuous), [true; 4]);
        assert_eq!(
            with(Modes {
                all_multicast: true,
                ..off
            }),
            [true, false, true, true]
        );
        assert_eq!(
            with(Modes {
                all_unicast: true,
                ..off
            }),
            [true, true, false, true]
        );
        let groups = Modes {
            no_unicast: true,
            all_multicast: true,
            ..off
        };
        assert_eq!(with(groups), [false, false, true, true]);
        assert_eq!(
            with(Modes {
                no_broadcast: true,
                ..off
            }),
            [true, false, false, false]
        );
        let none = Modes {
            no_multicast: true,
            all_multicast: true,
            ..off
        };
        assert_eq!(with(none), [true, false, false, true]);
        assert_eq!(
            takes(&Filter {
                modes: None,
                ..filter()
            }),
            [true; 4]
        );
    }

    #[test]
    fn tables_have_an_end() {
        let some = Filter {
            unicast: Addresses::new(&[[2, 9, 9, 9, 9, 9], OTHER]),
            multicast: Addresses::new(&[GROUP]),
            ..filter()
        };
        assert_eq!(takes(&some), [true; 4]);
        let stranger = Addresses::new(&[[2, 9, 9, 9, 9, 9]; MAX_ADDRESSES]);
        let full = Filter {
            unicast: stranger,
            ..filter()
        };
        assert_eq!(takes(&full), [true, false, false, true]);
        let stranger = Addresses::new(&[[2, 9, 9, 9, 9, 9]; MAX_ADDRESSES + 1]);
        let over = Filter {
            unicast: stranger,
            ..filter()
        };
        assert_eq!(takes(&over), [true, true, false, true]);
    }

    #[test]
    fn vlans_are_taken_one_by_one() {
        let tagged = |id: u16| {
            let [high, low] = (0xe000 | id).to_be_bytes();
            [&OWN[..], &OTHER, &[0x81, 0, high, low, 8, 0]].concat()
        };
        let mut filter = filter();
        assert!(!filter.wants(&tagged(5)));
        assert!(filter.wants(&tagged(0)));
        let mut vlans = Vlans::default();
        assert!(vlans.set(5, true) && vlans.set(4095, true) && vlans.set(6, true));
        assert!(vlans.set(6, false));
        assert!(!vlans.set(4096, true));
        assert_eq!(format!("{vlans:?}"), "{5, 4095}");
        filter.vlans = Some(vlans);
        assert_eq!(
            [4, 5, 6, 4095].map(|id| filter.wants(&tagged(id))),
            [false, true, false, true]
        );
        filter.vlans = None;
        assert!(filter.wants(&tagged(4)));
        // Cut short.
        for len in 0..16 {
            filter.wants(&tagged(5)[..len]);
        }
    }
}
