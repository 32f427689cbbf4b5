#![allow(clippy::unwrap_used)]
use super::*;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PAIRS: u16 = 4;

fn control(features: u64) -> Control {
    let config = NetConfig {
        mac: MAC,
        pairs: PAIRS,
        control: true,
        ..NetConfig::default()
    };
    let mut control = Control::new(&config);
    control.negotiate(config.features() & features);
    control
}

/// A table of `count` addresses, of which so many are there.
fn table(count: u32, there: usize) -> Vec<u8> {
    let mut table = count.to_le_bytes().to_vec();
    table.extend([2, 1, 1, 1, 1, 1].repeat(there));
    table
}

fn scaling(
    types: u32,
    mask: u16,
    unclassified: u16,
    table: &[u16],
    senders: u16,
    key: u8,
) -> Vec<u8> {
    let mut command = vec![4, 1];
    command.extend(types.to_le_bytes());
    command.extend(mask.to_le_bytes());
    command.extend(unclassified.to_le_bytes());
    command.extend(table.iter().flat_map(|pair| pair.to_le_bytes()));
    command.extend(senders.to_le_bytes());
    command.push(key);
    command.extend(std::iter::repeat_n(0x6d, key.into()));
    command
}

fn hash(types: u32, key: u8) -> Vec<u8> {
    let mut command = vec![4, 2];
    command.extend(types.to_le_bytes());
    command.extend([0; 8]);
    command.push(key);
    command.extend(std::iter::repeat_n(0x6d, key.into()));
    command
}

fn offloads(bits: u64) -> Vec<u8> {
    [&[5, 0][..], &bits.to_le_bytes()].concat()
}

/// Every command that there is, and the feature that it needs.
fn commands() -> Vec<(u64, Vec<u8>)> {
    let mut all: Vec<(u64, Vec<u8>)> = vec![
        (feature::CTRL_RX, vec![0, 0, 0]),
        (feature::CTRL_RX, vec![0, 1, 1]),
        (
            feature::CTRL_RX,
            [&[1, 0][..], &table(2, 2), &table(1, 1)].concat(),
        ),
        (feature::CTRL_MAC_ADDR, vec![1, 1, 2, 0, 0, 0, 0, 9]),
        (feature::CTRL_VLAN, vec![2, 0, 5, 0]),
        (feature::CTRL_VLAN, vec![2, 1, 5, 0]),
        (feature::GUEST_ANNOUNCE, vec![3, 0]),
        (feature::MQ, vec![4, 0, 3, 0]),
        (
            feature::RSS,
            scaling(rss::types::ALL, 3, 0, &[0, 1, 2, 3], 4, 40),
        ),
        (feature::HASH_REPORT, hash(rss::types::ALL, 40)),
        (feature::CTRL_GUEST_OFFLOADS, offloads(feature::GUEST_CSUM)),
    ];
    all.extend((2..6).map(|mode| (feature::CTRL_RX_EXTRA, vec![0, mode, 1])));
    all
}

#[test]
fn every_command_needs_its_feature_and_its_length() {
    for (needed, command) in commands() {
        let without = |bits: u64| control(!bits);
        assert_eq!(without(0).clone().answer(&command), OK, "{command:?}");
        let refused = |mut control: Control, command: &[u8], what: &str| {
            let before = control.clone();
            assert_eq!(control.answer(command), ERR, "{what}: {command:?}");
            assert_eq!(control, before, "{what}: {command:?}");
        };
        refused(without(needed), &command, "without the feature");
        refused(without(feature::CTRL_VQ), &command, "without a queue");
        for len in 0..command.len() {
            refused(without(0), &command[..len], "short");
        }
        refused(without(0), &[&command[..], &[0]].concat(), "long");
    }
}

#[test]
fn senseless_commands_are_refused() {
    let all = rss::types::ALL;
    for (what, command) in [
        ("no class", vec![6, 0, 0]),
        ("no command", vec![1, 2, 0]),
        ("no mode", vec![0, 6, 1]),
        ("neither on nor off", vec![0, 0, 2]),
        (
            "a table that lies",
            [&[1, 0][..], &table(3, 2), &table(0, 0)].concat(),
        ),
        (
            "one that lies much",
            [&[1, 0][..], &table(u32::MAX, 2), &table(0, 0)].concat(),
        ),
        ("a group's address", vec![1, 1, 3, 0, 0, 0, 0, 9]),
        ("no address", vec![1, 1, 0, 0, 0, 0, 0, 0]),
        ("no VLAN", vec![2, 0, 0, 0x10]),
        ("no pairs", vec![4, 0, 0, 0]),
        ("too many pairs", vec![4, 0, 5, 0]),
        ("hashes of other types", scaling(1 << 6, 0, 0, &[0], 1, 40)),
        ("no power of two", scaling(all, 2, 0, &[0, 1, 2], 1, 40)),
        ("too long a table", scaling(all, 255, 0, &[0; 256], 1, 40)),
        ("all of 16 bits", scaling(all, 0xffff, 0, &[0; 256], 1, 40)),
        (
            "a queue that is not there",
            scaling(all, 1, 0, &[0, PAIRS], 1, 40),
        ),
        ("another", scaling(all, 0, PAIRS, &[0], 1, 40)),
        ("no senders", scaling(all, 0, 0, &[0], 0, 40)),
        ("too many", scaling(all, 0, 0, &[0], PAIRS + 1, 40)),
        ("too long a key", scaling(all, 0, 0, &[0], 1, 41)),
        ("here too", hash(all, 41)),
        ("hashes of other types", hash(1 << 31, 40)),
        ("what was not accepted", offloads(1 << 10)),
        ("what is the other way", offloads(feature::CSUM)),
    ] {
        let mut control = control(u64::MAX);
        let before = control.clone();
        assert_eq!(control.answer(&command), ERR, "{what}");
        assert_eq!(control, before, "{what}");
    }
}

#[test]
fn what_is_asked_for_is_what_follows() {
    let mut control = control(u64::MAX);
    assert!(control.is_on());
    let all = Accepts {
        csum: true,
        tso4: true,
        tso6: true,
        ecn: true,
        uso4: true,
        uso6: true,
    };
    assert_eq!(control.accepts(), all);
    let some = feature::GUEST_CSUM | feature::GUEST_USO6;
    assert_eq!(control.answer(&offloads(some)), OK);
    let some = Accepts {
        csum: true,
        uso6: true,
        ..Accepts::default()
    };
    assert_eq!(control.accepts(), some);

    assert_eq!(control.mac(), MAC);
    assert_eq!(control.answer(&[1, 1, 2, 0, 0, 0, 0, 9]), OK);
    assert_eq!(control.mac(), [2, 0, 0, 0, 0, 9]);

    assert_eq!(control.steering, Steering::Automatic { pairs: 1 });
    assert_eq!(control.answer(&[4, 0, 3, 0]), OK);
    assert_eq!(control.steering, Steering::Automatic { pairs: 3 });
    let command = scaling(rss::types::IPV4, 3, 2, &[0, 1, 3, 3], 2, 40);
    assert_eq!(control.answer(&command), OK);
    let table = Steering::Table {
        table: [0, 1, 3, 3].into(),
        unclassified: 2,
    };
    assert_eq!(control.steering, table);
    let key = [0x6d; 40];
    assert_eq!(control.hash, Some(FlowHash::new(rss::types::IPV4, &key)));

    control.ask_announcement();
    assert!(control.wants_announcement());
    assert_eq!(control.answer(&[3, 0]), OK);
    assert!(!control.wants_announcement());

    // A reset forgets it all.
    control.negotiate(0);
    assert!(!control.is_on() && control.policy().is_none());
    assert_eq!(control.mac(), MAC);
    control.ask_announcement();
    assert!(!control.wants_announcement());
}

#[test]
fn whatever_is_said_nothing_breaks() {
    let mut random = crate::mock::Random::new(7);
    let all = commands();
    let mut control = control(u64::MAX);
    let mut answers = [0; 2];
    for _ in 0..100_000 {
        let (_, command) = &all[random.range(0, all.len() - 1)];
        let mut command = command.clone();
        for _ in 0..random.range(0, 3) {
            let at = random.range(0, command.len() - 1);
            command[at] = random.number() as u8;
        }
        command.truncate(random.range(0, 2 * command.len()));
        answers[usize::from(control.answer(&command))] += 1;
    }
    assert!(answers.iter().all(|count| *count > 1000), "{answers:?}");
}
