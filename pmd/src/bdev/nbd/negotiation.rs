//! The handshake, without a socket: bytes come in, bytes go out, and in the end there is an
//! export.
//!
//! Fixed newstyle only: greeting, STARTTLS if wanted, STRUCTURED_REPLY, GO. All that a server says
//! is bounded here: how long an answer is, and how many there are.

use super::error::NbdError;
use super::input::Input;
use super::wire::{self, Fields, answer, handshake, info, option, transmission};

/// Longest answer to an option. The protocol bounds its strings by 4096 bytes.
const LONGEST_ANSWER: u32 = 8192;

/// Most answers to one option.
const MOST_ANSWERS: u32 = 64;

/// Longest name of an export.
pub(super) const LONGEST_NAME: usize = 4096;

/// What a server exports, and how it wants to be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Export {
    /// In bytes.
    pub size: u64,
    /// What it can do.
    pub flags: u16,
    /// Offsets and lengths are multiples of this, in bytes.
    pub min_block: u32,
    /// What it does best.
    pub preferred_block: u32,
    /// Most bytes that a request may read or write.
    pub max_payload: u32,
    /// Reads are answered in chunks.
    pub structured: bool,
}

impl Export {
    /// Whether all of `flags` are set.
    pub(super) fn has(&self, flags: u16) -> bool {
        self.flags & flags == flags
    }
}

/// What follows.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// More bytes must come.
    More,
    /// The connection is encrypted from here on.
    StartTls,
    /// The handshake is over.
    Done(Export),
}

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Greeting,
    Tls,
    Structured,
    Go,
}

/// A handshake. See the [module](self).
#[derive(Debug)]
pub(super) struct Negotiation {
    name: String,
    tls: bool,
    phase: Phase,
    answers: u32,
    structured: bool,
    export: Option<(u64, u16)>,
    blocks: Option<(u32, u32, u32)>,
}

impl Negotiation {
    /// For the export called `name`, encrypted if `tls`.
    pub(super) fn new(name: &str, tls: bool) -> Self {
        Self {
            name: name.to_owned(),
            tls,
            phase: Phase::Greeting,
            answers: 0,
            structured: false,
            export: None,
            blocks: None,
        }
    }

    /// Goes on with what came; what shall be sent is added to `out`.
    pub(super) fn step(&mut self, input: &mut Input, out: &mut Vec<u8>) -> Result<Step, NbdError> {
        loop {
            if self.phase == Phase::Greeting {
                if !self.greeting(input, out)? {
                    return Ok(Step::More);
                }
                continue;
            }
            let Some((kind, len)) = self.answer(input)? else {
                return Ok(Step::More);
            };
            let text = input.data().get(20..20 + len).unwrap_or(&[]);
            let step = self.answered(kind, text, out)?;
            input.consume(20 + len);
            match step {
                // What came unencrypted behind the answer may be anybody's.
                Some(Step::StartTls) if !input.data().is_empty() => {
                    return Err(NbdError::Protocol {
                        what: "bytes before the encryption began:",
                        found: input.data().len() as u64,
                    });
                }
                Some(step) => return Ok(step),
                None => {}
            }
        }
    }

    fn greeting(&mut self, input: &mut Input, out: &mut Vec<u8>) -> Result<bool, NbdError> {
        let mut fields = Fields(input.data());
        if let Some(magic) = fields.u64().filter(|magic| *magic != wire::GREETING) {
            return Err(NbdError::NotNbd(magic));
        }
        match fields.u64() {
            Some(wire::OLD_STYLE) => return Err(NbdError::OldStyle),
            Some(magic) if magic != wire::OPTION => return Err(NbdError::NotNbd(magic)),
            _ => {}
        }
        let Some(flags) = fields.u16() else {
            return Ok(false);
        };
        if flags & handshake::FIXED_NEWSTYLE == 0 {
            return Err(NbdError::OldStyle);
        }
        input.consume(18);
        let flags = flags & (handshake::FIXED_NEWSTYLE | handshake::NO_ZEROES);
        out.extend(u32::from(flags).to_be_bytes());
        if self.tls {
            self.ask(Phase::Tls, out);
        } else {
            self.ask(Phase::Structured, out);
        }
        Ok(true)
    }

    fn ask(&mut self, phase: Phase, out: &mut Vec<u8>) {
        self.phase = phase;
        self.answers = 0;
        let mut data = Vec::new();
        if phase == Phase::Go {
            data.extend((self.name.len() as u32).to_be_bytes());
            data.extend(self.name.as_bytes());
            data.extend(1u16.to_be_bytes());
            data.extend(info::BLOCK_SIZE.to_be_bytes());
        }
        out.extend(wire::OPTION.to_be_bytes());
        out.extend(self.option().to_be_bytes());
        out.extend((data.len() as u32).to_be_bytes());
        out.extend(data);
    }

    fn option(&self) -> u32 {
        match self.phase {
            Phase::Greeting => 0,
            Phase::Tls => option::STARTTLS,
            Phase::Structured => option::STRUCTURED_REPLY,
            Phase::Go => option::GO,
        }
    }

    /// An answer that came as a whole: its kind and length.
    fn answer(&mut self, input: &Input) -> Result<Option<(u32, usize)>, NbdError> {
        let mut fields = Fields(input.data());
        let wrong = |what, found| Err(NbdError::Protocol { what, found });
        let Some(magic) = fields.u64() else {
            return Ok(None);
        };
        if magic != wire::OPTION_REPLY {
            return wrong("an answer begins with", magic);
        }
        let (Some(option), Some(kind), Some(len)) = (fields.u32(), fields.u32(), fields.u32())
        else {
            return Ok(None);
        };
        if option != self.option() {
            return wrong("an answer to option", option.into());
        }
        if len > LONGEST_ANSWER {
            return wrong("an answer's length is", len.into());
        }
        let len = len as usize;
        if fields.0.len() < len {
            return Ok(None);
        }
        self.answers += 1;
        if self.answers > MOST_ANSWERS {
            return wrong("answers to one option:", self.answers.into());
        }
        Ok(Some((kind, len)))
    }

    fn answered(
        &mut self,
        kind: u32,
        text: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<Option<Step>, NbdError> {
        match (self.phase, kind) {
            (Phase::Tls, answer::ACK) => {
                self.ask(Phase::Structured, out);
                Ok(Some(Step::StartTls))
            }
            (Phase::Structured, kind) if kind == answer::ACK || kind & answer::ERROR != 0 => {
                if kind == answer::TLS_REQUIRED {
                    return Err(refused("an unencrypted connection", kind, text));
                }
                self.structured = kind == answer::ACK;
                self.ask(Phase::Go, out);
                Ok(None)
            }
            (Phase::Go, answer::INFO) => {
                self.info(text)?;
                Ok(None)
            }
            (Phase::Go, answer::ACK) => self.export().map(|export| Some(Step::Done(export))),
            (Phase::Tls, kind) if kind & answer::ERROR != 0 => {
                Err(refused("to encrypt", kind, text))
            }
            (_, kind) if kind & answer::ERROR != 0 => Err(refused("this export", kind, text)),
            (_, kind) => Err(NbdError::Protocol {
                what: "an answer of kind",
                found: kind.into(),
            }),
        }
    }

    fn info(&mut self, text: &[u8]) -> Result<(), NbdError> {
        let mut fields = Fields(text);
        let short = NbdError::Protocol {
            what: "an information's length is",
            found: text.len() as u64,
        };
        match fields.u16() {
            Some(info::EXPORT) => {
                let (Some(size), Some(flags), []) = (fields.u64(), fields.u16(), fields.0) else {
                    return Err(short);
                };
                self.export = Some((size, flags));
            }
            Some(info::BLOCK_SIZE) => {
                let (Some(min), Some(preferred), Some(max), []) =
                    (fields.u32(), fields.u32(), fields.u32(), fields.0)
                else {
                    return Err(short);
                };
                self.blocks = Some((min, preferred, max));
            }
            // Names and descriptions, which nobody asked for but may come.
            Some(_) => {}
            None => return Err(short),
        }
        Ok(())
    }

    fn export(&self) -> Result<Export, NbdError> {
        let Some((size, flags)) = self.export else {
            return Err(NbdError::Protocol {
                what: "information about the export:",
                found: 0,
            });
        };
        if size > i64::MAX as u64 {
            return Err(NbdError::Protocol {
                what: "the export's size is",
                found: size,
            });
        }
        // What a server that does not say its sizes must take, by the protocol.
        let (min, preferred, max) = self.blocks.unwrap_or((1, 4096, 32 << 20));
        let fits = min.is_power_of_two()
            && min <= 65536
            && preferred.is_power_of_two()
            && preferred >= min
            && max >= min.max(512);
        if !fits {
            return Err(NbdError::Blocks {
                min,
                preferred,
                max,
            });
        }
        let flags = match flags & transmission::HAS_FLAGS {
            0 => 0,
            _ => flags,
        };
        Ok(Export {
            size,
            flags,
            min_block: min,
            preferred_block: preferred,
            // A multiple of all blocks that we may choose.
            max_payload: max.min(32 << 20) & !(min.max(512) - 1),
            structured: self.structured,
        })
    }
}

/// What a server says when it says no.
fn refused(what: &'static str, code: u32, text: &[u8]) -> NbdError {
    let reason = match code {
        answer::UNSUPPORTED => "it does not know how",
        answer::POLICY => "it is told not to",
        answer::TLS_REQUIRED => "it wants TLS; give the option tls=DIRECTORY",
        answer::UNKNOWN => "it has no export of this name; give the right one with export=NAME",
        answer::SHUTDOWN => "it is shutting down",
        answer::BLOCK_SIZE_REQUIRED => "it wants block sizes to be respected",
        _ => "it does not say why",
    };
    // For a terminal: no control characters, and not too much.
    let text: String = String::from_utf8_lossy(text)
        .chars()
        .filter(|c| !c.is_control())
        .take(200)
        .collect();
    NbdError::Refused {
        what,
        reason,
        code,
        text: match text.is_empty() {
            true => text,
            false => format!(": {text}"),
        },
    }
}
