//! The guests: processes that are started for an act, listened to, and ended.

use std::io::{BufRead, BufReader, IsTerminal, Write};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::process::{Pid, Signal, kill_process};

use super::stage::{NAMES, Stage};
use crate::guest::report::{Line, Progress, Rate, Report};
use crate::signals::Shutdown;

/// How often we look whether a signal came.
const LOOK: Duration = Duration::from_millis(50);
/// How much longer than planned an act may take.
const GRACE: Duration = Duration::from_secs(20);
/// How long a guest may take to end when it is told to.
const FAREWELL: Duration = Duration::from_secs(3);
/// Descriptors in a guest's rings: guests that share a CPU take turns less often with more.
const QUEUE_SIZE: &str = "1024";

/// What came of something that a signal can end early.
pub(super) enum Ending<T> {
    Done(T),
    Interrupted,
}

/// Something that a guest said, or that it said all.
type Heard = (usize, Option<Line>);

/// A guest's process, which ends with this value.
struct Guest {
    name: &'static str,
    child: Child,
}

impl Guest {
    fn start(
        stage: &Stage,
        number: usize,
        job: &[&str],
        heard: Sender<Heard>,
    ) -> anyhow::Result<Self> {
        let name = NAMES.get(number).copied().unwrap_or_default();
        let program = std::env::current_exe().context("where is this program?")?;
        let mut child = Command::new(program)
            .args([
                "-q",
                "guest",
                "--json",
                "--progress",
                "--queue-size",
                QUEUE_SIZE,
            ])
            .arg("--socket")
            .arg(stage.socket(name))
            .args(job)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start guest {name}"))?;
        let output = child.stdout.take();
        let guest = Self { name, child };
        std::thread::Builder::new()
            .name(format!("guest-{name}"))
            .spawn(move || {
                let lines = output
                    .into_iter()
                    .flat_map(|output| BufReader::new(output).lines());
                for line in lines.map_while(Result::ok) {
                    let line = serde_json::from_str(&line).ok();
                    if line.is_some() && heard.send((number, line)).is_err() {
                        return;
                    }
                }
                let _ = heard.send((number, None));
            })
            .context("cannot start a thread")?;
        Ok(guest)
    }

    fn tell(&self, signal: Signal) {
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// Waits for the end, and does not wait for ever.
    fn end(&mut self) {
        let deadline = Instant::now() + FAREWELL;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.tell(Signal::TERM);
            self.end();
        }
    }
}

/// One act.
pub(super) struct Play<'a> {
    name: &'static str,
    time: Duration,
    shutdown: &'a Shutdown,
    heard: (Sender<Heard>, Receiver<Heard>),
    last: [Progress; 2],
    lines: Lines,
}

impl<'a> Play<'a> {
    /// An act that takes about this long.
    pub(super) fn new(name: &'static str, time: Duration, shutdown: &'a Shutdown) -> Self {
        Self {
            name,
            time,
            shutdown,
            heard: channel(),
            last: Default::default(),
            lines: Lines::new(),
        }
    }

    /// One guest works, the other one is its sink.
    pub(super) fn with_sink(
        &mut self,
        stage: &Stage,
        worker: usize,
        job: &[&str],
    ) -> anyhow::Result<Ending<[Report; 2]>> {
        let sink = 1 - worker;
        let started = self.start(stage, sink, &["sink"])?;
        stage.wait_for(started.name, true)?;
        let mut guests = vec![started, self.start(stage, worker, job)?];
        self.run(stage, &mut guests, Some((worker, sink)))
    }

    /// Both do the same.
    pub(super) fn together(
        &mut self,
        stage: &Stage,
        job: &[&str],
    ) -> anyhow::Result<Ending<[Report; 2]>> {
        let mut guests = vec![self.start(stage, 0, job)?, self.start(stage, 1, job)?];
        self.run(stage, &mut guests, None)
    }

    fn start(&self, stage: &Stage, number: usize, job: &[&str]) -> anyhow::Result<Guest> {
        Guest::start(stage, number, job, self.heard.0.clone())
    }

    /// Listens until both have reported. Once the first of `order` has, the second is told to
    /// stop.
    fn run(
        &mut self,
        stage: &Stage,
        guests: &mut [Guest],
        order: Option<(usize, usize)>,
    ) -> anyhow::Result<Ending<[Report; 2]>> {
        let deadline = Instant::now() + self.time + GRACE;
        let mut reports: [Option<Box<Report>>; 2] = [None, None];
        loop {
            if self.shutdown.raised() {
                self.lines.end();
                guests.iter().for_each(|guest| guest.tell(Signal::INT));
                guests.iter_mut().for_each(Guest::end);
                return Ok(Ending::Interrupted);
            }
            if Instant::now() > deadline {
                bail!(
                    "the guests take more than {GRACE:?} longer to {} than planned",
                    self.name
                );
            }
            match self.heard.1.recv_timeout(LOOK) {
                Ok((number, Some(Line::Report(report)))) => {
                    if let Some((_, sink)) = order.filter(|(worker, _)| *worker == number) {
                        let told = NAMES.get(sink).copied().unwrap_or_default();
                        let sinks = guests.iter().filter(|guest| guest.name == told);
                        sinks.for_each(|guest| guest.tell(Signal::INT));
                    }
                    if let Some(place) = reports.get_mut(number) {
                        *place = Some(report);
                    }
                }
                Ok((number, Some(Line::Progress(progress)))) => self.progress(number, progress),
                Ok((number, None)) if reports.get(number).is_some_and(Option::is_none) => {
                    let name = NAMES.get(number).copied().unwrap_or_default();
                    bail!("guest {name} ended without a report");
                }
                Ok(_) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => bail!("the guests cannot be heard"),
            }
            if let [Some(a), Some(b)] = &reports {
                let done = [a, b].map(|report| (**report).clone());
                self.lines.end();
                guests.iter_mut().for_each(Guest::end);
                for guest in guests.iter() {
                    stage.wait_for(guest.name, false)?;
                }
                return Ok(Ending::Done(done));
            }
        }
    }

    /// Says how it goes, once for both guests.
    fn progress(&mut self, number: usize, now: Progress) {
        let Some(last) = self.last.get_mut(number) else {
            return;
        };
        let time = Duration::from_secs_f64((now.seconds - last.seconds).max(0.001));
        let rate = |now: u64, last: u64| Rate(now.saturating_sub(last), time).to_string();
        let sent = rate(now.sent_packets, last.sent_packets);
        let received = rate(now.received_packets, last.received_packets);
        let seconds = now.seconds.round();
        *last = now;
        let name = NAMES.get(number).copied().unwrap_or_default();
        let text = format!("{name} sends {sent:>10}, receives {received:>10}");
        self.lines.put(self.name, seconds, number, text);
    }
}

/// How it goes: one line for each second, or one line that changes on a terminal.
struct Lines {
    parts: [Option<String>; 2],
    is_terminal: bool,
    open: bool,
}

impl Lines {
    fn new() -> Self {
        Self {
            parts: [None, None],
            is_terminal: std::io::stdout().is_terminal(),
            open: false,
        }
    }

    fn put(&mut self, act: &str, seconds: f64, number: usize, text: String) {
        if let Some(part) = self.parts.get_mut(number) {
            *part = Some(text);
        }
        let [Some(a), Some(b)] = &self.parts else {
            return;
        };
        let line = format!("  {act:<7} {seconds:>3} s   {a}   {b}");
        let mut out = std::io::stdout();
        if self.is_terminal {
            let _ = write!(out, "\r\x1b[K{line}");
            let _ = out.flush();
            self.open = true;
        } else {
            println!("{line}");
        }
        self.parts = [None, None];
    }

    fn end(&mut self) {
        if std::mem::take(&mut self.open) {
            println!();
        }
    }
}
