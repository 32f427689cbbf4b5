//! What a server answers, without a socket: bytes come in, and whoever asked hears of it.
//!
//! Nothing is believed: an answer must be to a request that is in flight, data must be inside what
//! was asked for and no more than that, and what does not end is bounded. Bytes of data are
//! handed on as they come, however they are cut.

use super::error::NbdError;
use super::wire::{self, Fields, chunk, error};

/// Most errors that one request is told before its end.
const MOST_ERRORS: u8 = 4;

/// Longest error: code, length, text, offset.
const LONGEST_ERROR: u32 = 4096 + 14;

/// A request that a server was asked, and what it answered so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Command {
    /// Whether data comes back.
    pub(super) read: bool,
    /// First byte on the disk.
    pub(super) offset: u64,
    /// How many.
    pub(super) len: u32,
    /// How many of them came.
    came: u32,
    /// How many errors came, and the first one.
    errors: (u8, u32),
}

impl Command {
    pub(super) fn new(read: bool, offset: u64, len: u32) -> Self {
        Self {
            read,
            offset,
            len,
            ..Self::default()
        }
    }
}

/// Who asked.
pub(super) trait Asker {
    /// The request in flight with this handle.
    fn command(&mut self, handle: u64) -> Option<&mut Command>;

    /// Bytes that were asked for, from `at` of the request on.
    fn data(&mut self, handle: u64, at: u32, bytes: &[u8]);

    /// The same, all zero.
    fn zeroes(&mut self, handle: u64, at: u32, len: u32);

    /// The request is over, with an error that is not zero if it failed.
    fn end(&mut self, handle: u64, error: u32);
}

/// What is expected next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Header,
    /// Data of a request, from `at` on.
    Data {
        handle: u64,
        at: u32,
        left: u32,
        last: bool,
    },
    /// Words for people.
    Text {
        handle: u64,
        left: u32,
        last: bool,
    },
}

/// A stream of answers. See the [module](self).
#[derive(Debug)]
pub(super) struct Replies {
    structured: bool,
    state: State,
}

fn wrong<T>(what: &'static str, found: impl Into<u64>) -> Result<T, NbdError> {
    let found = found.into();
    Err(NbdError::Protocol { what, found })
}

impl Replies {
    /// Of a server that answers in chunks, or not.
    pub(super) fn new(structured: bool) -> Self {
        Self {
            structured,
            state: State::Header,
        }
    }

    /// Looks at what came, and returns how much of it is done with: the rest is needed again, with
    /// what follows.
    pub(super) fn feed(&mut self, bytes: &[u8], asker: &mut impl Asker) -> Result<usize, NbdError> {
        let mut rest = bytes;
        loop {
            match self.state {
                State::Header => {
                    let Some(len) = self.header(rest, asker)? else {
                        return Ok(bytes.len() - rest.len());
                    };
                    rest = rest.get(len..).unwrap_or(&[]);
                }
                State::Data {
                    handle,
                    at,
                    left,
                    last,
                } => {
                    let now = rest.len().min(left as usize);
                    let (data, behind) = rest.split_at(now);
                    if now > 0 {
                        asker.data(handle, at, data);
                    }
                    rest = behind;
                    // At most `left`, which is one.
                    let now = now as u32;
                    if now < left {
                        self.state = State::Data {
                            handle,
                            at: at.wrapping_add(now),
                            left: left - now,
                            last,
                        };
                        return Ok(bytes.len());
                    }
                    self.chunk_ends(handle, last, asker)?;
                }
                State::Text { handle, left, last } => {
                    let now = rest.len().min(left as usize);
                    rest = rest.get(now..).unwrap_or(&[]);
                    let left = left - now as u32;
                    if left > 0 {
                        self.state = State::Text { handle, left, last };
                        return Ok(bytes.len());
                    }
                    self.chunk_ends(handle, last, asker)?;
                }
            }
        }
    }

    /// What an answer begins with; how long that is, or `None` if not all of it is there.
    fn header(&mut self, bytes: &[u8], asker: &mut impl Asker) -> Result<Option<usize>, NbdError> {
        let mut fields = Fields(bytes);
        match fields.u32() {
            None => Ok(None),
            Some(wire::SIMPLE_REPLY) => {
                let (Some(error), Some(handle)) = (fields.u32(), fields.u64()) else {
                    return Ok(None);
                };
                self.simple(error, handle, asker)?;
                Ok(Some(16))
            }
            Some(wire::STRUCTURED_REPLY) if self.structured => {
                let (Some(flags), Some(kind), Some(handle), Some(len)) =
                    (fields.u16(), fields.u16(), fields.u64(), fields.u32())
                else {
                    return Ok(None);
                };
                let Some(more) = self.chunk(flags, kind, handle, len, fields, asker)? else {
                    return Ok(None);
                };
                Ok(Some(20 + more))
            }
            Some(magic) => wrong("an answer begins with", magic),
        }
    }

    fn simple(&mut self, error: u32, handle: u64, asker: &mut impl Asker) -> Result<(), NbdError> {
        let Some(command) = asker.command(handle) else {
            return wrong("an answer to a request that is not in flight:", handle);
        };
        if command.came > 0 || command.errors.0 > 0 {
            return wrong("a second answer to request", handle);
        }
        if error == error::SHUTDOWN {
            return Err(NbdError::Shutdown);
        }
        if command.read && self.structured && error == 0 {
            return wrong("data without chunks for request", handle);
        }
        if command.read && error == 0 {
            command.came = command.len;
            self.state = State::Data {
                handle,
                at: 0,
                left: command.len,
                last: true,
            };
        } else {
            asker.end(handle, error);
        }
        Ok(())
    }

    /// A chunk's fixed part behind the header; how long that is.
    fn chunk(
        &mut self,
        flags: u16,
        kind: u16,
        handle: u64,
        len: u32,
        mut fields: Fields<'_>,
        asker: &mut impl Asker,
    ) -> Result<Option<usize>, NbdError> {
        let Some(command) = asker.command(handle) else {
            return wrong("a chunk for a request that is not in flight:", handle);
        };
        let last = flags & chunk::DONE != 0;
        if kind & chunk::ERROR != 0 {
            if !(6..=LONGEST_ERROR).contains(&len) {
                return wrong("an error's length is", len);
            }
            let Some(error) = fields.u32() else {
                return Ok(None);
            };
            if error == error::SHUTDOWN {
                return Err(NbdError::Shutdown);
            }
            let (count, first) = &mut command.errors;
            *count += 1;
            if error == 0 || *count > MOST_ERRORS {
                return wrong("an error with code", error);
            }
            if *count == 1 {
                *first = error;
            }
            let left = len - 4;
            self.state = State::Text { handle, left, last };
            return Ok(Some(4));
        }
        match kind {
            chunk::NONE => {
                if len != 0 || !last {
                    return wrong("an empty chunk's length is", len);
                }
                self.chunk_ends(handle, true, asker)?;
                Ok(Some(0))
            }
            chunk::DATA | chunk::HOLE if !command.read => {
                wrong("data for what is no read: request", handle)
            }
            chunk::DATA => {
                if len <= 8 {
                    return wrong("a chunk of data's length is", len);
                }
                let Some(offset) = fields.u64() else {
                    return Ok(None);
                };
                let left = len - 8;
                let at = place(command, offset, left)?;
                self.state = State::Data {
                    handle,
                    at,
                    left,
                    last,
                };
                Ok(Some(8))
            }
            chunk::HOLE => {
                if len != 12 {
                    return wrong("a hole's length is", len);
                }
                let (Some(offset), Some(hole)) = (fields.u64(), fields.u32()) else {
                    return Ok(None);
                };
                if hole == 0 {
                    return wrong("a hole of length", hole);
                }
                let at = place(command, offset, hole)?;
                asker.zeroes(handle, at, hole);
                self.chunk_ends(handle, last, asker)?;
                Ok(Some(20 - 8))
            }
            _ => wrong("a chunk of kind", kind),
        }
    }

    fn chunk_ends(
        &mut self,
        handle: u64,
        last: bool,
        asker: &mut impl Asker,
    ) -> Result<(), NbdError> {
        self.state = State::Header;
        if !last {
            return Ok(());
        }
        let Some(command) = asker.command(handle) else {
            return wrong("the end of a request that is not in flight:", handle);
        };
        let (count, error) = command.errors;
        if count == 0 && command.read && command.came != command.len {
            return wrong(
                "a read is over with bytes missing:",
                command.len - command.came,
            );
        }
        asker.end(handle, error);
        Ok(())
    }
}

/// Where in a request `len` bytes at `offset` of the disk are. They count as come.
fn place(command: &mut Command, offset: u64, len: u32) -> Result<u32, NbdError> {
    let inside = offset
        .checked_sub(command.offset)
        .and_then(|at| u32::try_from(at).ok())
        .filter(|at| at.checked_add(len).is_some_and(|end| end <= command.len));
    let Some(at) = inside else {
        return wrong("data from outside of what was asked for, at", offset);
    };
    // Chunks may not overlap, so no more comes than was asked for.
    if len > command.len - command.came {
        return wrong("more data than was asked for, at", offset);
    }
    command.came += len;
    Ok(at)
}
