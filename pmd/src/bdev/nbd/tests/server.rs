//! The other side, which does what a test says.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::thread::JoinHandle;

use super::super::wire::transmission::{FLUSH, FUA, HAS_FLAGS, MULTI_CONN, TRIM, WRITE_ZEROES};
use super::super::wire::{self, chunk};
use super::Folder;
use crate::bdev::fake::PATIENCE;

/// What a server offers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Offer {
    pub(super) size: u64,
    pub(super) flags: u16,
    pub(super) blocks: Option<(u32, u32, u32)>,
    pub(super) structured: bool,
}

impl Offer {
    /// Everything, for a disk of `size` bytes.
    pub(super) fn all(size: u64) -> Self {
        Self {
            size,
            flags: HAS_FLAGS | FLUSH | FUA | TRIM | WRITE_ZEROES | MULTI_CONN,
            blocks: Some((1, 4096, 1 << 20)),
            structured: true,
        }
    }
}

/// A request as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    pub(super) flags: u16,
    pub(super) command: u16,
    pub(super) handle: u64,
    pub(super) offset: u64,
    pub(super) len: u32,
    pub(super) data: Vec<u8>,
}

/// Numbers of commands.
pub(super) const READ: u16 = 0;
pub(super) const WRITE: u16 = 1;
pub(super) const GOODBYE: u16 = 2;
pub(super) const FLUSH_COMMAND: u16 = 3;

/// What a greeting with these flags is.
pub(super) fn greeting(flags: u16) -> Vec<u8> {
    let mut bytes = wire::GREETING.to_be_bytes().to_vec();
    bytes.extend(wire::OPTION.to_be_bytes());
    bytes.extend(flags.to_be_bytes());
    bytes
}

/// What an answer to an option is.
pub(super) fn answer(option: u32, kind: u32, text: &[u8]) -> Vec<u8> {
    let mut bytes = wire::OPTION_REPLY.to_be_bytes().to_vec();
    bytes.extend(option.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend((text.len() as u32).to_be_bytes());
    bytes.extend(text);
    bytes
}

/// The texts of the information that follows GO.
pub(super) fn infos(offer: &Offer) -> Vec<Vec<u8>> {
    let mut export = 0u16.to_be_bytes().to_vec();
    export.extend(offer.size.to_be_bytes());
    export.extend(offer.flags.to_be_bytes());
    let mut all = vec![export];
    if let Some((min, preferred, max)) = offer.blocks {
        let mut blocks = 3u16.to_be_bytes().to_vec();
        for number in [min, preferred, max] {
            blocks.extend(number.to_be_bytes());
        }
        all.push(blocks);
    }
    all
}

/// A connection, from the server's side. A client that left is met with `None`.
pub(super) struct Talk(pub(super) UnixStream);

impl Talk {
    pub(super) fn say(&mut self, bytes: &[u8]) {
        // A client may leave whenever it likes.
        let _ = self.0.write_all(bytes);
    }

    fn hear<const N: usize>(&mut self) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        self.0.read_exact(&mut bytes).ok()?;
        Some(bytes)
    }

    fn hear_many(&mut self, n: u32) -> Option<Vec<u8>> {
        let mut bytes = vec![0; n as usize];
        self.0.read_exact(&mut bytes).ok()?;
        Some(bytes)
    }

    /// The next option and its data.
    pub(super) fn option(&mut self) -> Option<(u32, Vec<u8>)> {
        assert_eq!(u64::from_be_bytes(self.hear()?), wire::OPTION);
        let option = u32::from_be_bytes(self.hear()?);
        let len = u32::from_be_bytes(self.hear()?);
        Some((option, self.hear_many(len)?))
    }

    /// The handshake, to its end.
    pub(super) fn shake(&mut self, offer: &Offer) -> Option<()> {
        self.say(&greeting(3));
        assert_eq!(u32::from_be_bytes(self.hear()?), 3);
        let (option, _) = self.option()?;
        assert_eq!(option, wire::option::STRUCTURED_REPLY);
        let kind = match offer.structured {
            true => wire::answer::ACK,
            false => wire::answer::UNSUPPORTED,
        };
        self.say(&answer(option, kind, &[]));
        let (option, _) = self.option()?;
        assert_eq!(option, wire::option::GO);
        for text in infos(offer) {
            self.say(&answer(option, wire::answer::INFO, &text));
        }
        self.say(&answer(option, wire::answer::ACK, &[]));
        Some(())
    }

    /// The next request, if there is one.
    pub(super) fn request(&mut self) -> Option<Asked> {
        let head: [u8; 28] = self.hear()?;
        let mut fields = wire::Fields(&head);
        assert_eq!(fields.u32(), Some(0x2560_9513));
        let mut asked = Asked {
            flags: fields.u16()?,
            command: fields.u16()?,
            handle: fields.u64()?,
            offset: fields.u64()?,
            len: fields.u32()?,
            data: Vec::new(),
        };
        if asked.command == WRITE {
            asked.data = self.hear_many(asked.len)?;
        }
        (asked.command != GOODBYE).then_some(asked)
    }

    /// A simple reply.
    pub(super) fn reply(&mut self, handle: u64, error: u32, data: &[u8]) {
        let mut bytes = wire::SIMPLE_REPLY.to_be_bytes().to_vec();
        bytes.extend(error.to_be_bytes());
        bytes.extend(handle.to_be_bytes());
        bytes.extend(data);
        self.say(&bytes);
    }

    /// A chunk of a structured reply.
    pub(super) fn chunk(&mut self, flags: u16, kind: u16, handle: u64, text: &[u8]) {
        self.say(&piece(flags, kind, handle, text));
    }

    /// What answers a request for `bytes`, or about them.
    pub(super) fn serve(&mut self, asked: &Asked, offer: &Offer, bytes: &mut [u8]) {
        let start = asked.offset as usize;
        let range = start..start + asked.len as usize;
        if asked.command == READ && offer.structured {
            let mut text = asked.offset.to_be_bytes().to_vec();
            text.extend(&bytes[range]);
            self.chunk(chunk::DONE, chunk::DATA, asked.handle, &text);
        } else if asked.command == READ {
            self.reply(asked.handle, 0, &bytes[range]);
        } else {
            match asked.command {
                WRITE => bytes[range].copy_from_slice(&asked.data),
                FLUSH_COMMAND => {}
                _ => bytes[range].fill(0),
            }
            self.reply(asked.handle, 0, &[]);
        }
    }
}

/// A chunk's bytes.
pub(super) fn piece(flags: u16, kind: u16, handle: u64, text: &[u8]) -> Vec<u8> {
    let mut bytes = wire::STRUCTURED_REPLY.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(handle.to_be_bytes());
    bytes.extend((text.len() as u32).to_be_bytes());
    bytes.extend(text);
    bytes
}

/// A server at a socket, which meets each connection with the next of its parts.
pub(super) struct Stage {
    folder: Folder,
    thread: Option<JoinHandle<()>>,
}

type Part = Box<dyn FnOnce(Talk) + Send>;

impl Stage {
    pub(super) fn new(parts: Vec<Part>) -> Self {
        let folder = Folder::new();
        let listener = UnixListener::bind(folder.0.join("nbd")).unwrap();
        let thread = std::thread::spawn(move || {
            for part in parts {
                let (stream, _) = listener.accept().unwrap();
                // A test that fails ends all the same.
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                part(Talk(stream));
            }
        });
        Self {
            folder,
            thread: Some(thread),
        }
    }

    pub(super) fn path(&self) -> PathBuf {
        self.folder.0.join("nbd")
    }

    /// Waits for the end of the last part.
    pub(super) fn end(mut self) {
        self.thread.take().unwrap().join().unwrap();
    }
}
