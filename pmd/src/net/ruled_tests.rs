//! Ports with rules. Ports 0 to 3 are with one worker, 4 and 5 with another.

use std::time::Duration;

use super::*;
use crate::port::BURST;

const SECOND: u64 = 1_000_000_000;

fn bench() -> Bench {
    Bench::new(4, 2)
}

impl Bench {
    fn port_rules(&mut self, port: u16, rules: PortRules) {
        for part in &mut self.parts {
            part.set_rules(port, rules.clone());
        }
    }

    fn rules(&mut self, port: u16, rules: Rules) {
        assert_eq!(rules.check(), Ok(()));
        assert!(rules.claim(&self.fdb, port));
        let rules = PortRules {
            rules,
            ..PortRules::default()
        };
        self.port_rules(port, rules);
    }

    fn vlans(&mut self, ports: &[(u16, Vlans)]) {
        for (port, vlans) in ports {
            let vlans = vlans.clone();
            self.rules(
                *port,
                Rules {
                    vlans,
                    ..Rules::default()
                },
            );
        }
    }

    fn clock(&mut self, nanos: u64) {
        for part in &mut self.parts {
            part.set_clock(nanos);
        }
    }

    fn dropped(&self, port: usize, reason: Drop) -> u64 {
        self.ports[port].drops(reason)
    }

    fn tagged(&mut self, source: u16, to: [u8; 6], from: [u8; 6], tags: &[u16]) -> Vec<usize> {
        let area = frame(to, from, 60);
        for (n, tag) in tags.iter().enumerate() {
            let [high, low] = tag.to_be_bytes();
            let place = area.slice().offset(12 + 4 * n).unwrap();
            place.copy_from(&[0x81, 0, high, low]);
        }
        self.send_frame(source, &area)
    }
}

fn trunk(tagged: &[u16], native: Option<u16>) -> Vlans {
    let tagged = VlanSet::new(tagged.iter().copied());
    Vlans::Trunk { tagged, native }
}

#[test]
fn vlans_are_apart() {
    let mut b = bench();
    // 0 and 4 in VLAN 10, 1 in VLAN 20, trunks at 2 and 5; 3 in none.
    b.vlans(&[
        (0, Vlans::Access(10)),
        (4, Vlans::Access(10)),
        (1, Vlans::Access(20)),
        (2, trunk(&[10, 30], Some(20))),
        (5, trunk(&[10, 20], None)),
    ]);
    assert_eq!(b.send(0, ALL, mac(0)), [2, 4, 5]);
    assert_eq!(b.send(1, ALL, mac(1)), [2, 5]);
    assert!(b.send(3, ALL, mac(3)).is_empty());
    assert_eq!(b.send(2, ALL, mac(2)), [1, 5], "native");
    assert_eq!(b.tagged(2, ALL, mac(2), &[10]), [0, 4, 5]);
    assert_eq!(b.tagged(5, ALL, mac(5), &[20]), [1, 2]);
    // Learned in one VLAN, unknown in the other.
    assert_eq!(b.tagged(5, mac(0), mac(5), &[10]), [0]);
    assert_eq!(b.tagged(5, mac(0), mac(5), &[20]), [1, 2]);
    assert_eq!(b.send(4, mac(2), mac(4)), [2], "across workers");
    // The same address in two VLANs is two addresses.
    b.send(0, ALL, mac(9));
    b.send(1, ALL, mac(9));
    assert_eq!(b.tagged(5, mac(9), mac(5), &[10]), [0]);
    assert_eq!(b.tagged(5, mac(9), mac(5), &[20]), [1]);
    assert_eq!(b.send(4, mac(9), mac(4)), [0]);
    for port in 0..6 {
        assert_eq!(b.dropped(port, Drop::Vlan), 0, "{port}");
    }
}

#[test]
fn tags_that_may_not_be_are_dropped() {
    let mut b = bench();
    b.vlans(&[
        (0, Vlans::Access(10)),
        (1, trunk(&[10, 11], None)),
        (2, trunk(&[11], Some(10))),
    ]);
    for tags in [&[10][..], &[11], &[0, 10], &[0xfff]] {
        assert!(b.tagged(0, ALL, mac(0), tags).is_empty(), "{tags:?}");
    }
    assert_eq!(b.dropped(0, Drop::Vlan), 4);
    assert_eq!(b.tagged(0, ALL, mac(0), &[0xe000]), [1, 2], "a priority");
    assert!(b.tagged(1, ALL, mac(1), &[12]).is_empty());
    assert!(b.send(1, ALL, mac(1)).is_empty(), "no native VLAN");
    assert_eq!(b.dropped(1, Drop::Vlan), 2);
    // What is inside a tag is taken for a tag by nobody else.
    assert_eq!(b.tagged(1, ALL, mac(1), &[10, 11]), [0]);
    assert_eq!(b.tagged(1, ALL, mac(1), &[11, 10]), [2]);
    // Cut short within the tag.
    for len in 14..18 {
        let area = frame(ALL, mac(1), len);
        let place = area.slice().offset(12).unwrap();
        place.copy_from(&[0x81, 0, 0, 10][..(len - 12).min(4)]);
        assert!(b.send_frame(1, &area).is_empty(), "{len}");
    }
    assert_eq!(b.dropped(1, Drop::Vlan), 6);
    // Nothing of all this was learned.
    b.vlans(&[(3, trunk(&[10, 11, 12], None))]);
    assert_eq!(b.tagged(3, mac(0), mac(3), &[11]), [1, 2]);
    assert_eq!(b.tagged(3, mac(0), mac(3), &[10]), [0], "the priority was");
}

#[test]
fn only_allowed_addresses_come_from_a_port() {
    let mut b = bench();
    b.rules(
        0,
        Rules {
            sources: Some(vec![mac(0), mac(7)]),
            ..Rules::default()
        },
    );
    assert_eq!(b.send(0, ALL, mac(0)).len(), 5);
    assert_eq!(b.send(0, ALL, mac(7)).len(), 5);
    assert!(b.send(0, ALL, mac(1)).is_empty());
    assert!(b.send(0, mac(1), mac(1)).is_empty());
    assert_eq!(b.dropped(0, Drop::Spoofed), 2);
    assert!(b.send(0, ALL, ALL).is_empty());
    assert_eq!(b.dropped(0, Drop::BadSource), 1);
    assert_eq!(b.send(1, mac(1), mac(9)).len(), 5, "was not learned");
}

#[test]
fn held_addresses_stay_where_they_are() {
    let mut b = bench();
    let held = Rules {
        statics: vec![mac(4)],
        ..Rules::default()
    };
    b.rules(4, held.clone());
    assert!(!held.claim(&b.fdb, 2), "one port only");
    // Known without having been heard, and however long.
    b.later(100_000);
    assert_eq!(b.send(0, mac(4), mac(0)), [4]);
    assert_eq!(b.ports[0].unlearnt.get(), 0);
    // Whoever says to be it is not heard, with rules or without.
    b.rules(
        1,
        Rules {
            isolated: true,
            ..Rules::default()
        },
    );
    for port in [0, 1, 5] {
        assert!(b.send(port, ALL, mac(4)).is_empty(), "{port}");
        assert_eq!(b.dropped(port.into(), Drop::HeldAddress), 1);
    }
    assert_eq!(b.send(0, mac(4), mac(0)), [4]);
    assert_eq!(b.send(4, mac(0), mac(4)), [0], "but itself is");
    b.fdb.flush(4);
    assert_eq!(b.send(0, mac(4), mac(0)), [4], "nor is it flushed");
    b.fdb.remove(4);
    assert_eq!(b.send(0, mac(4), mac(0)).len(), 5);
}

#[test]
fn a_port_has_so_many_addresses() {
    let mut b = bench();
    let limit = Rules {
        mac_limit: Some(3),
        ..Rules::default()
    };
    b.rules(4, limit);
    for n in 10..13 {
        assert_eq!(b.send(4, ALL, mac(n)).len(), 5);
    }
    assert!(b.send(4, ALL, mac(13)).is_empty());
    assert!(b.send(4, mac(10), mac(13)).is_empty());
    assert_eq!(b.dropped(4, Drop::MacLimit), 2);
    assert_eq!(b.send(4, ALL, mac(12)).len(), 5, "who is known stays");
    assert_eq!(b.send(0, mac(13), mac(0)).len(), 5);
    // One leaves, another one may come.
    b.send(0, ALL, mac(12));
    assert_eq!(b.send(4, ALL, mac(13)).len(), 5);
    assert_eq!(b.fdb.len(4), 3);
}

#[test]
fn a_flood_is_contained() {
    let mut b = bench();
    b.clock(0);
    b.rules(
        0,
        Rules {
            storm: Some(1000),
            ..Rules::default()
        },
    );
    b.send(1, ALL, mac(1));
    let flood = |b: &mut Bench, to| {
        let got = (0..200).filter(|_| !b.send(0, to, mac(0)).is_empty());
        got.count()
    };
    // Broadcast, multicast and unknown addresses share what there is.
    assert_eq!(flood(&mut b, ALL), 64);
    assert_eq!(flood(&mut b, [1, 0, 0x5e, 0, 0, 1]), 0);
    assert_eq!(flood(&mut b, mac(99)), 0);
    assert_eq!(b.dropped(0, Drop::Storm), 536);
    assert_eq!(b.send(0, mac(1), mac(0)), [1], "a frame for one port");
    assert_eq!(b.send(2, ALL, mac(2)).len(), 5, "another port's flood");
    b.clock(SECOND / 50);
    assert_eq!(flood(&mut b, mac(99)), 20);
    b.clock(100 * SECOND);
    assert_eq!(flood(&mut b, ALL), 64, "not more than a burst");
}

#[test]
fn rates_are_kept() {
    let mut b = bench();
    b.clock(0);
    let pps = Rules {
        pps: Some(10_000),
        burst: Some(Duration::from_millis(20)),
        ..Rules::default()
    };
    b.rules(0, pps);
    // 60 bytes are 480 bits.
    let bits = Rules {
        rate: Some(480 * 1_000_000),
        ..Rules::default()
    };
    b.rules(1, bits);
    let passed = |b: &mut Bench, port, n| {
        let got = (0..n).filter(|_| !b.send(port, ALL, mac(port as u8)).is_empty());
        got.count()
    };
    assert_eq!(passed(&mut b, 0, 300), 200);
    assert_eq!(b.dropped(0, Drop::PacketRate), 100);
    assert_eq!(passed(&mut b, 1, 11_000), 10_000, "ten milliseconds");
    assert_eq!(b.dropped(1, Drop::BitRate), 1000);
    for step in 1..=10 {
        b.clock(step * SECOND / 1000);
        assert_eq!(passed(&mut b, 0, 100), 10);
        assert_eq!(passed(&mut b, 1, 1500), 1000);
    }
    assert_eq!(passed(&mut b, 2, 1000), 1000, "no limit");
}

#[test]
fn isolated_ports_talk_to_others_only() {
    let mut b = bench();
    let isolated = Rules {
        isolated: true,
        ..Rules::default()
    };
    for port in [0, 1, 4] {
        b.rules(port, isolated.clone());
    }
    assert_eq!(b.send(0, ALL, mac(0)), [2, 3, 5]);
    assert_eq!(b.send(4, ALL, mac(4)), [2, 3, 5]);
    assert_eq!(b.send(2, ALL, mac(2)), [0, 1, 3, 4, 5]);
    assert_eq!(b.send(5, mac(0), mac(5)), [0]);
    assert_eq!(b.send(0, mac(5), mac(0)), [5]);
    // Here and across workers.
    assert_eq!(b.send(1, ALL, mac(1)), [2, 3, 5]);
    assert!(b.send(0, mac(1), mac(0)).is_empty());
    assert!(b.send(0, mac(4), mac(0)).is_empty());
    assert!(b.send(4, mac(0), mac(4)).is_empty());
    assert_eq!(b.dropped(0, Drop::Isolated), 2);
    assert_eq!(b.dropped(4, Drop::Isolated), 1);
}

#[test]
fn frames_on_their_way_are_judged_where_they_arrive() {
    let mut b = bench();
    b.send(4, ALL, mac(4));
    let isolated = Rules {
        isolated: true,
        ..Rules::default()
    };
    b.rules(0, isolated.clone());
    // The rule comes while the frame is under way.
    b.parts[0].inject(0, frame(mac(4), mac(0), 60).slice());
    b.rules(4, isolated);
    b.parts[1].poll_inbox();
    assert_eq!(b.dropped(4, Drop::Isolated), 1);
    b.parts[0].inject(0, frame(ALL, mac(0), 60).slice());
    let before = b.ports[4].tx_packets.get();
    b.parts[1].poll_inbox();
    assert_eq!(b.ports[4].tx_packets.get(), before);
    assert_eq!(b.ports[5].tx_packets.get(), 2);
}

#[test]
fn a_monitor_sees_both_directions_and_nothing_else() {
    // With the watched port's worker, and with the other.
    for monitor in [3, 5] {
        let mut b = bench();
        for port in 0..6 {
            b.send(port, ALL, mac(port as u8));
        }
        b.fdb.remove(monitor);
        let watches = PortRules {
            monitor: true,
            ..PortRules::default()
        };
        b.port_rules(monitor, watches);
        let watched = PortRules {
            mirror: Some(monitor),
            ..PortRules::default()
        };
        b.port_rules(0, watched);
        let saw = usize::from(monitor);
        assert_eq!(b.send(0, mac(1), mac(0)), [1, saw]);
        assert_eq!(b.send(1, mac(0), mac(1)), [0, saw]);
        assert_eq!(b.send(4, mac(0), mac(4)), [0, saw]);
        assert_eq!(b.send(1, mac(2), mac(1)), [2], "others' frames");
        assert_eq!(b.send(0, mac(0), mac(0)), [saw], "even what is dropped");
        let all: Vec<_> = (1..6).collect();
        assert_eq!(b.send(0, ALL, mac(0)), all);
        assert_eq!(b.send(1, ALL, mac(1)).len(), 5, "as port 0 gets it");
        assert!(!b.send(1, mac(monitor as u8), mac(1)).is_empty(), "flooded");
        assert!(b.send(monitor, mac(1), mac(monitor as u8)).is_empty());
        assert!(b.send(monitor, ALL, mac(1)).is_empty());
        assert_eq!(b.dropped(saw, Drop::Monitor), 2);
        assert_eq!(b.send(0, mac(1), mac(0)), [1, saw], "1 was not moved");
    }
}

#[test]
fn a_monitor_gets_more_than_a_burst() {
    let mut b = Bench::new(3, 0);
    b.port_rules(
        2,
        PortRules {
            monitor: true,
            ..PortRules::default()
        },
    );
    for port in [0, 1] {
        let mirror = Some(2);
        b.port_rules(
            port,
            PortRules {
                mirror,
                ..PortRules::default()
            },
        );
    }
    // A whole burst between two ports that are both watched is seen twice.
    let stats = Arc::clone(&b.ports[0]);
    let generator = crate::port::Generator::new(60, mac(0), mac(1), stats).unwrap();
    let (_, tx) = b.parts[0].remove(0);
    let stats = Arc::clone(&b.ports[0]);
    b.parts[0].add(0, RxPort::Gen(generator), tx.unwrap(), stats);
    for rounds in 1..=3 {
        b.parts[0].poll(0);
        let sent = (rounds * BURST) as u64;
        assert_eq!(b.ports[1].tx_packets.get(), sent);
        assert_eq!(b.ports[2].tx_packets.get(), 2 * sent);
    }
}

#[test]
fn rules_go_with_their_port() {
    let mut b = bench();
    b.vlans(&[(0, Vlans::Access(10))]);
    assert!(b.send(0, ALL, mac(0)).is_empty());
    b.port_rules(0, PortRules::default());
    assert_eq!(b.send(0, ALL, mac(0)).len(), 5);
    assert_eq!(b.send(1, mac(0), mac(1)), [0]);
}

#[test]
fn rules_that_nobody_can_have() {
    let all = Rules::default;
    let vlans = |vlans| Rules { vlans, ..all() };
    for bad in [
        vlans(Vlans::Access(0)),
        vlans(Vlans::Access(4095)),
        vlans(trunk(&[5], Some(4095))),
        Rules {
            statics: vec![ALL],
            ..all()
        },
        Rules {
            sources: Some(vec![[0; 6]]),
            ..all()
        },
        Rules {
            statics: (0..100).map(mac).collect(),
            ..vlans(Vlans::Trunk {
                tagged: VlanSet::new(1..12),
                native: None,
            })
        },
    ] {
        assert!(bad.check().is_err(), "{bad:?}");
    }
}
