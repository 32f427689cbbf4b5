//! The host's end of the agent's serial port: requests go out, a thread files what comes back.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufReader, Write};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::wire::{self, Event, Request};

/// How a request ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum End {
    /// A program ended.
    Exited {
        code: Option<i32>,
        signal: Option<i32>,
    },
    /// It was carried out.
    Done,
    /// The agent could not carry it out.
    Failed(String),
    /// The guest was reset, or its QEMU is gone.
    Lost,
}

/// What is known about a request so far.
#[derive(Debug, Default)]
pub(crate) struct Call {
    pub pid: Option<u32>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub end: Option<End>,
    log: Option<File>,
}

impl Call {
    fn file(&mut self, event: Event) {
        match event {
            Event::Hello => {}
            Event::Started { pid } => self.pid = Some(pid),
            Event::Stdout(bytes) => {
                self.log(&bytes);
                self.stdout.extend(bytes);
            }
            Event::Stderr(bytes) => {
                self.log(&bytes);
                self.stderr.extend(bytes);
            }
            Event::Exited { code, signal } => self.end = Some(End::Exited { code, signal }),
            Event::Done => self.end = Some(End::Done),
            Event::Failed(why) => self.end = Some(End::Failed(why)),
        }
    }

    fn log(&mut self, bytes: &[u8]) {
        if let Some(log) = &mut self.log {
            // A log that cannot be written must not change the outcome of a test.
            let _ = log.write_all(bytes);
        }
    }
}

#[derive(Default)]
struct State {
    boots: u32,
    closed: bool,
    next_id: u32,
    calls: HashMap<u32, Call>,
}

/// The line to one guest. It survives resets of the guest, not the end of its QEMU.
pub(crate) struct Channel {
    state: Mutex<State>,
    changed: Condvar,
    line: Mutex<UnixStream>,
}

impl Channel {
    /// Starts reading a connection.
    pub(crate) fn new(line: UnixStream) -> Result<Arc<Channel>> {
        let reader = line.try_clone()?;
        line.set_write_timeout(Some(Duration::from_secs(20)))?;
        let channel = Arc::new(Channel {
            state: Mutex::default(),
            changed: Condvar::new(),
            line: Mutex::new(line),
        });
        let filing = channel.clone();
        thread::spawn(move || filing.file_events(reader));
        Ok(channel)
    }

    /// Boots that the agent has announced so far.
    pub(crate) fn boots(&self) -> u32 {
        self.state().boots
    }

    /// QEMU has closed the line.
    pub(crate) fn is_closed(&self) -> bool {
        self.state().closed
    }

    /// Sends a request and returns its id. Output is also written to `log`.
    pub(crate) fn request(&self, request: &Request, log: Option<File>) -> Result<u32> {
        let mut state = self.state();
        state.next_id += 1;
        let id = state.next_id;
        let end = state.closed.then_some(End::Lost);
        state.calls.insert(
            id,
            Call {
                log,
                end,
                ..Call::default()
            },
        );
        drop(state);
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        wire::send(&mut *line, id, request).context("the line to the agent")?;
        Ok(id)
    }

    /// Waits until a call's state makes `look` return something, or the time is over.
    pub(crate) fn wait<T>(
        &self,
        id: u32,
        deadline: Instant,
        mut look: impl FnMut(&Call) -> Option<T>,
    ) -> Option<T> {
        self.wait_state(deadline, |state| state.calls.get(&id).and_then(&mut look))
    }

    /// Waits until the agent has announced that many boots or the line is closed.
    pub(crate) fn wait_boots(&self, boots: u32, deadline: Instant) -> bool {
        let reached =
            |state: &State| (state.boots >= boots || state.closed).then_some(state.boots >= boots);
        self.wait_state(deadline, reached).unwrap_or(false)
    }

    fn wait_state<T>(
        &self,
        deadline: Instant,
        mut look: impl FnMut(&State) -> Option<T>,
    ) -> Option<T> {
        let mut state = self.state();
        loop {
            if let Some(found) = look(&state) {
                return Some(found);
            }
            let left = deadline.checked_duration_since(Instant::now())?;
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    fn file_events(&self, line: UnixStream) {
        let mut line = BufReader::new(line);
        while let Ok((id, event)) = wire::receive(&mut line) {
            let mut state = self.state();
            if event == Event::Hello {
                state.boots += 1;
                state.lose_calls();
            } else if let Some(call) = state.calls.get_mut(&id) {
                call.file(event);
            }
            drop(state);
            self.changed.notify_all();
        }
        let mut state = self.state();
        state.closed = true;
        state.lose_calls();
        drop(state);
        self.changed.notify_all();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn lose_calls(&mut self) {
        for call in self.calls.values_mut() {
            call.end.get_or_insert(End::Lost);
        }
    }
}
