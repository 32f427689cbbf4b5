//! The handshake and the answers, without a socket.

use super::super::error::NbdError;
use super::super::input::Input;
use super::super::negotiation::{Export, Negotiation, Step};
use super::super::replies::{Asker, Command, Replies};
use super::super::wire::{self, answer, chunk, option};
use super::server::{Offer, answer as said, greeting, infos, piece};

/// What a server says from the greeting to the end, as one.
fn speech(offer: &Offer) -> Vec<u8> {
    let mut bytes = greeting(3);
    bytes.extend(said(option::STRUCTURED_REPLY, answer::ACK, &[]));
    for text in infos(offer) {
        bytes.extend(said(option::GO, answer::INFO, &text));
    }
    bytes.extend(said(option::GO, answer::ACK, &[]));
    bytes
}

/// Lets a negotiation hear `bytes`, `cut` at a time, and what follows.
fn hear(tls: bool, bytes: &[u8], cut: usize) -> (Result<Step, NbdError>, Vec<u8>) {
    let mut negotiation = Negotiation::new("name", tls);
    let (mut input, mut out) = (Input::new(16384), Vec::new());
    for part in bytes.chunks(cut) {
        input.room()[..part.len()].copy_from_slice(part);
        input.came(part.len());
        match negotiation.step(&mut input, &mut out) {
            Ok(Step::More) => {}
            other => return (other, out),
        }
    }
    (Ok(Step::More), out)
}

#[test]
fn a_handshake_comes_to_its_end_however_it_is_cut() {
    let offer = Offer::all(123 << 20);
    let bytes = speech(&offer);
    for cut in 1..=bytes.len() {
        let (step, out) = hear(false, &bytes, cut);
        let export = Export {
            size: offer.size,
            flags: offer.flags,
            min_block: 1,
            preferred_block: 4096,
            max_payload: 1 << 20,
            structured: true,
        };
        assert_eq!(step.unwrap(), Step::Done(export));
        // Flags, structured replies, and GO with the name and one wish.
        let mut wanted = 3u32.to_be_bytes().to_vec();
        for (number, data) in [
            (option::STRUCTURED_REPLY, &[][..]),
            (option::GO, b"\0\0\0\x04name\0\x01\0\x03"),
        ] {
            wanted.extend(wire::OPTION.to_be_bytes());
            wanted.extend(number.to_be_bytes());
            wanted.extend((data.len() as u32).to_be_bytes());
            wanted.extend(data);
        }
        assert_eq!(out, wanted);
    }
}

#[test]
fn a_server_without_block_sizes_has_those_of_the_protocol() {
    let offer = Offer {
        blocks: None,
        ..Offer::all(1 << 20)
    };
    let (step, _) = hear(false, &speech(&offer), 1000);
    let Ok(Step::Done(export)) = step else {
        panic!("{step:?}");
    };
    assert_eq!((export.min_block, export.max_payload), (1, 32 << 20));
}

#[test]
fn what_follows_encryption_unencrypted_is_refused() {
    let mut bytes = greeting(3);
    bytes.extend(said(option::STARTTLS, answer::ACK, &[]));
    let (step, _) = hear(true, &bytes, 1000);
    assert_eq!(step.unwrap(), Step::StartTls);
    bytes.push(0);
    let (step, _) = hear(true, &bytes, 1000);
    assert!(matches!(step, Err(NbdError::Protocol { .. })), "{step:?}");
}

#[test]
fn handshakes_that_cannot_be() {
    let after = |bytes: &[u8]| [&greeting(3)[..], bytes].concat();
    let go = |bytes: &[u8]| {
        after(&[&said(option::STRUCTURED_REPLY, answer::ACK, &[])[..], bytes].concat())
    };
    let ack = said(option::GO, answer::ACK, &[]);
    let with = |blocks| {
        speech(&Offer {
            blocks: Some(blocks),
            ..Offer::all(1 << 20)
        })
    };
    let mut old = wire::GREETING.to_be_bytes().to_vec();
    old.extend(wire::OLD_STYLE.to_be_bytes());
    let mut wrong_magic = said(option::STRUCTURED_REPLY, answer::ACK, &[]);
    wrong_magic[0] ^= 1;
    let mut too_long = said(option::STRUCTURED_REPLY, answer::ACK, &[]);
    too_long[16] = 1;
    let endless = said(option::GO, answer::INFO, &[0, 1, b'a']).repeat(1000);
    let catalogue: Vec<(&str, Vec<u8>)> = vec![
        ("no NBD server", b"SSH-2.0-OpenSSH_9.2".to_vec()),
        ("old handshake", old),
        ("old handshake", greeting(2)),
        ("an answer begins with", after(&wrong_magic)),
        ("an answer's length", after(&too_long)),
        ("an answer to option", after(&ack)),
        (
            "an answer of kind",
            after(&said(option::STRUCTURED_REPLY, answer::INFO, &[])),
        ),
        (
            "give the option tls",
            after(&said(option::STRUCTURED_REPLY, answer::TLS_REQUIRED, &[])),
        ),
        ("information about the export", go(&ack)),
        (
            "an information's length",
            go(&said(option::GO, answer::INFO, &[])),
        ),
        (
            "an information's length",
            go(&said(option::GO, answer::INFO, &[0, 0, 1])),
        ),
        (
            "an information's length",
            go(&said(option::GO, answer::INFO, &[0, 3, 1])),
        ),
        ("answers to one option", go(&endless)),
        (
            "export=NAME (code 0x80000006): no \"name\"",
            go(&said(option::GO, answer::UNKNOWN, b"no \"name\"\n")),
        ),
        (
            "it is told not to",
            go(&said(option::GO, answer::POLICY, &[])),
        ),
        (
            "does not say why",
            go(&said(option::GO, answer::ERROR + 99, &[0xff; 5000])),
        ),
        ("the export's size", speech(&Offer::all(1 << 63))),
        ("blocks of at least 3", with((3, 4096, 1 << 20))),
        ("blocks of at least 0", with((0, 4096, 1 << 20))),
        (
            "blocks of at least 131072",
            with((1 << 17, 1 << 17, 1 << 20)),
        ),
        ("best 512", with((4096, 512, 1 << 20))),
        ("at most 511", with((1, 512, 511))),
        ("at most 0", with((1, 512, 0))),
    ];
    for (words, bytes) in catalogue {
        for cut in [1, 7, 10_000] {
            match hear(false, &bytes, cut).0 {
                Err(error) => assert!(error.to_string().contains(words), "{words}: {error}"),
                Ok(step) => panic!("{words}: {step:?}"),
            }
        }
    }
    // Nothing is concluded from a part.
    let bytes = speech(&Offer::all(1 << 20));
    for len in 0..bytes.len() {
        assert_eq!(hear(false, &bytes[..len], 1000).0.unwrap(), Step::More);
    }
}

/// Somebody who asked for the bytes from 1000 to 1100, under handle 7, and for a write.
#[derive(Debug, PartialEq, Eq)]
struct Asking {
    read: Option<Command>,
    write: Option<Command>,
    bytes: Vec<u8>,
    ends: Vec<(u64, u32)>,
}

impl Asking {
    fn new() -> Self {
        Self {
            read: Some(Command::new(true, 1000, 100)),
            write: Some(Command::new(false, 0, 512)),
            bytes: vec![0xee; 100],
            ends: Vec::new(),
        }
    }
}

impl Asker for Asking {
    fn command(&mut self, handle: u64) -> Option<&mut Command> {
        match handle {
            7 => self.read.as_mut(),
            8 => self.write.as_mut(),
            _ => None,
        }
    }

    fn data(&mut self, handle: u64, at: u32, bytes: &[u8]) {
        assert_eq!(handle, 7);
        self.bytes[at as usize..at as usize + bytes.len()].copy_from_slice(bytes);
    }

    fn zeroes(&mut self, handle: u64, at: u32, len: u32) {
        assert_eq!(handle, 7);
        self.bytes[at as usize..(at + len) as usize].fill(0);
    }

    fn end(&mut self, handle: u64, error: u32) {
        match handle {
            7 => self.read = None,
            _ => self.write = None,
        }
        self.ends.push((handle, error));
    }
}

/// Lets somebody who asked hear `bytes`, `cut` at a time.
fn answered(structured: bool, bytes: &[u8], cut: usize) -> Result<Asking, NbdError> {
    let (mut replies, mut asking) = (Replies::new(structured), Asking::new());
    let mut waiting = Vec::new();
    for part in bytes.chunks(cut) {
        waiting.extend_from_slice(part);
        let used = replies.feed(&waiting, &mut asking)?;
        waiting.drain(..used);
        assert!(
            waiting.len() < 40,
            "{} bytes are not looked at",
            waiting.len()
        );
    }
    assert!(waiting.is_empty());
    Ok(asking)
}

fn simple(handle: u64, error: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = wire::SIMPLE_REPLY.to_be_bytes().to_vec();
    bytes.extend(error.to_be_bytes());
    bytes.extend(handle.to_be_bytes());
    bytes.extend(data);
    bytes
}

fn at(offset: u64, rest: &[u8]) -> Vec<u8> {
    [&offset.to_be_bytes()[..], rest].concat()
}

#[test]
fn answers_arrive_however_they_are_cut() {
    let mut wanted = vec![1; 100];
    let plain = [simple(8, 28, &[]), simple(7, 0, &wanted)].concat();
    let chunks = [
        piece(0, chunk::DATA, 7, &at(1050, &[2; 50])),
        piece(chunk::DONE, chunk::ERROR + 1, 8, b"\0\0\0\x1c\0\x04full"),
        piece(0, chunk::HOLE, 7, &at(1000, &30u32.to_be_bytes())),
        piece(0, chunk::DATA, 7, &at(1030, &[3; 20])),
        piece(chunk::DONE, chunk::NONE, 7, &[]),
    ]
    .concat();
    for cut in 1..=plain.len() {
        let asking = answered(false, &plain, cut).unwrap();
        assert_eq!(
            (&asking.bytes, &asking.ends[..]),
            (&wanted, &[(8, 28), (7, 0)][..])
        );
    }
    wanted[..30].fill(0);
    wanted[30..50].fill(3);
    wanted[50..].fill(2);
    for cut in 1..=chunks.len() {
        let asking = answered(true, &chunks, cut).unwrap();
        assert_eq!(
            (&asking.bytes, &asking.ends[..]),
            (&wanted, &[(8, 28), (7, 0)][..])
        );
    }
}

#[test]
fn answers_that_cannot_be() {
    let data = |offset, len: usize| piece(0, chunk::DATA, 7, &at(offset, &vec![1; len]));
    let hole = |offset, len: u32| piece(0, chunk::HOLE, 7, &at(offset, &len.to_be_bytes()));
    let error = |text: &[u8]| piece(0, chunk::ERROR + 1, 7, text);
    let end = piece(chunk::DONE, chunk::NONE, 7, &[]);
    let eio = b"\0\0\0\x05\0\0";
    let catalogue: Vec<(&str, Vec<u8>)> = vec![
        ("an answer begins with", vec![0; 40]),
        ("not in flight", simple(9, 0, &[])),
        ("not in flight", piece(0, chunk::NONE, u64::MAX, &[])),
        ("data without chunks", simple(7, 0, &[1; 100])),
        (
            "second answer",
            [data(1000, 10), simple(7, 5, &[])].concat(),
        ),
        (
            "not in flight",
            [simple(8, 0, &[]), simple(8, 0, &[])].concat(),
        ),
        ("an empty chunk", piece(0, chunk::NONE, 7, &[])),
        (
            "an empty chunk",
            piece(chunk::DONE, chunk::NONE, 7, &[0; 30]),
        ),
        ("bytes missing: 0x64", end.clone()),
        ("bytes missing: 0x1", [data(1000, 99), end.clone()].concat()),
        (
            "data for what is no read",
            piece(0, chunk::DATA, 8, &at(0, &[1; 100])),
        ),
        (
            "chunk of data's length",
            piece(0, chunk::DATA, 7, &at(1000, &[])),
        ),
        ("outside", data(999, 2)),
        ("outside", data(1000, 101)),
        ("outside", data(1100, 1)),
        ("outside", data(u64::MAX, 1)),
        ("outside", data(0, 1)),
        ("outside", hole(1000, u32::MAX)),
        ("outside", hole(1000 + (1 << 32), 1)),
        ("more data", [data(1000, 60), data(1040, 60)].concat()),
        ("more data", [hole(1000, 100), hole(1000, 1)].concat()),
        ("a hole of length", hole(1000, 0)),
        ("a hole's length", piece(0, chunk::HOLE, 7, &[0; 40])),
        ("an error's length", error(&[0; 5])),
        ("an error's length", error(&[0; 5000])),
        ("an error with code", error(&[0; 20])),
        ("an error with code", error(eio).repeat(5)),
        ("shuts down", error(b"\0\0\0\x6c\0\0")),
        ("shuts down", simple(8, 108, &[])),
        ("a chunk of kind", piece(0, 5, 7, &[0; 40])),
        ("a chunk of kind", piece(0, 99, 7, &[0; 40])),
    ];
    for (words, bytes) in catalogue {
        for cut in [1, 9, 10_000] {
            let found = answered(true, &bytes, cut).map(|asking| asking.ends);
            match found {
                Err(error) => assert!(error.to_string().contains(words), "{words}: {error}"),
                Ok(ends) => panic!("{words}: {ends:?}"),
            }
        }
    }
    // Chunks only if they were agreed on.
    assert!(answered(false, &end, 1000).is_err());
    // An error wins over what came, and over what did not.
    let failed = [data(1000, 60), error(eio), end].concat();
    assert_eq!(answered(true, &failed, 3).unwrap().ends, [(7, 5)]);
}

#[test]
fn random_answers_do_no_harm() {
    let mut random = 0x1234_5678_9abc_def1u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for _ in 0..20_000 {
        // Right in most places, so that it comes further than the first number.
        let mut bytes = Vec::new();
        for _ in 0..next() % 4 {
            let handle = 7 + next() % 2;
            let len = (next() % 110) as usize;
            bytes.extend(match next() % 4 {
                0 => simple(handle, (next() % 3) as u32, &vec![1; len]),
                1 => piece(
                    next() as u16 & 1,
                    chunk::DATA,
                    handle,
                    &at(1000 + next() % 110, &vec![1; len]),
                ),
                2 => piece(
                    next() as u16 & 1,
                    chunk::HOLE,
                    handle,
                    &at(1000 + next() % 110, &(len as u32).to_be_bytes()),
                ),
                _ => piece(next() as u16 & 1, chunk::ERROR + 1, handle, &vec![1; len]),
            });
        }
        if next().is_multiple_of(2) && !bytes.is_empty() {
            let place = next() as usize % bytes.len();
            bytes[place] ^= 1 << (next() % 8);
        }
        let (mut replies, mut asking) = (Replies::new(next().is_multiple_of(2)), Asking::new());
        if let Ok(used) = replies.feed(&bytes, &mut asking) {
            assert!(used <= bytes.len());
        }
        assert!(asking.ends.len() <= 2);
    }
}
