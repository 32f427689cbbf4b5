//! What can be done to a connection without saying anything that makes sense.

use std::time::Duration;

use vvu::protocol::{FLAG_REPLY, Message, REQUESTS, Request, VERSION};

use super::Deed;
use crate::guest::error::GuestError;

/// A message of any size, in a header that says so or not.
fn header(request: u32, flags: u32, size: u32) -> Vec<u8> {
    [request, flags, size]
        .into_iter()
        .flat_map(u32::to_le_bytes)
        .collect()
}

/// Sends all known requests with a payload of `len` bytes each, on a connection for each.
fn all_with(scene: &mut super::Scene<'_>, len: usize) -> Result<(), GuestError> {
    for info in REQUESTS {
        let mut raw = scene.connect()?;
        let message = Message {
            request: info.number,
            flags: VERSION,
            payload: vec![0xff; len],
        };
        raw.message(&message, &[]);
    }
    Ok(())
}

pub(super) const DEEDS: &[Deed] = &[
    Deed {
        name: "garbage",
        what: "4 KiB of random bytes",
        act: |scene| {
            let mut bytes = vec![0; 4096];
            scene.rng.fill(&mut bytes);
            scene.connect()?.bytes(&bytes, &[]);
            Ok(())
        },
    },
    Deed {
        name: "silence",
        what: "a connection on which nothing is said for a second",
        act: |scene| {
            let _raw = scene.connect()?;
            std::thread::sleep(Duration::from_secs(1));
            Ok(())
        },
    },
    Deed {
        name: "connect-storm",
        what: "300 connections that are closed at once",
        act: |scene| {
            for _ in 0..300 {
                scene.connect()?;
            }
            Ok(())
        },
    },
    Deed {
        name: "wrong-version",
        what: "protocol versions 0, 2 and 3",
        act: |scene| {
            for version in [0, 2, 3] {
                let mut raw = scene.connect()?;
                raw.bytes(&header(1, version, 0), &[]);
                raw.settle();
            }
            Ok(())
        },
    },
    Deed {
        name: "reply-unasked",
        what: "replies to requests that nobody sent",
        act: |scene| {
            let mut raw = scene.connect()?;
            raw.bytes(&header(1, VERSION | FLAG_REPLY, 0), &[]);
            raw.settle();
            Ok(())
        },
    },
    Deed {
        name: "unknown-requests",
        what: "request numbers 0, 1000 and 4294967295",
        act: |scene| {
            for number in [0, 1000, u32::MAX] {
                let mut raw = scene.connect()?;
                raw.bytes(&header(number, VERSION | 8, 0), &[]);
                raw.settle();
            }
            Ok(())
        },
    },
    Deed {
        name: "payload-endless",
        what: "a header that announces 4 GiB, and 1 MiB of it",
        act: |scene| {
            let mut raw = scene.connect()?;
            raw.bytes(&header(1, VERSION, u32::MAX), &[]);
            raw.bytes(&vec![0; 1 << 20], &[]);
            Ok(())
        },
    },
    Deed {
        name: "payload-too-long",
        what: "every request with 4000 bytes of payload",
        act: |scene| all_with(scene, 4000),
    },
    Deed {
        name: "payload-too-short",
        what: "every request with 1 byte of payload",
        act: |scene| all_with(scene, 1),
    },
    Deed {
        name: "payload-of-ones",
        what: "every request with 8 bytes of ones",
        act: |scene| all_with(scene, 8),
    },
    Deed {
        name: "half-a-header",
        what: "every part of a header, then hanging up",
        act: |scene| {
            let bytes = header(2, VERSION, 8);
            for len in 1..bytes.len() {
                scene
                    .connect()?
                    .bytes(bytes.get(..len).unwrap_or_default(), &[]);
            }
            Ok(())
        },
    },
    Deed {
        name: "half-a-payload",
        what: "every part of a payload, then hanging up",
        act: |scene| {
            let bytes = Request::SetFeatures(0).to_message(false).to_bytes();
            for len in 12..bytes.len() {
                scene
                    .connect()?
                    .bytes(bytes.get(..len).unwrap_or_default(), &[]);
            }
            Ok(())
        },
    },
    Deed {
        name: "stall-in-a-message",
        what: "half a message and then nothing for a second",
        act: |scene| {
            let mut raw = scene.connect()?;
            raw.bytes(&header(2, VERSION, 8), &[]);
            std::thread::sleep(Duration::from_secs(1));
            Ok(())
        },
    },
    Deed {
        name: "answers-unread",
        what: "20000 questions whose answers nobody reads",
        act: |scene| {
            let mut raw = scene.connect()?;
            let question = Request::GetFeatures.to_message(false).to_bytes();
            let many = question.repeat(1000);
            for _ in 0..20 {
                if !raw.bytes(&many, &[]) {
                    break;
                }
            }
            Ok(())
        },
    },
];
