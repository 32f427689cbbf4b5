//! Who is there, and who is told.

use std::time::{Duration, Instant};

use crate::bench::Bench;
use crate::driver::{BACKEND_UP, BOTH_UP, CONFIG, common, read, write};
use crate::front_end::{FrontEnd, PLAIN, REPLY, message, request};
use crate::target::{Setup, Target};
use crate::{PATIENCE, pause, step};

/// Bit of the interrupt status: the configuration has changed.
const ISR_CONFIG: u8 = 2;

pub(super) fn c19_configuration_interrupts(target: &dyn Target) {
    let mut bench = Bench::started(target);
    let generation = |bench: &Bench| read::<u8>(&bench.driver.common, common::CONFIG_GENERATION);
    let isr = |bench: &Bench| read::<u8>(&bench.driver.isr, 0);
    let before = generation(&bench);
    isr(&bench);
    let front_end = bench.connect();
    bench.driver.no_interrupt(CONFIG);
    assert_eq!(bench.driver.status(), 0);

    bench.driver.set_status(BACKEND_UP);
    bench.driver.wait_status(BOTH_UP);
    bench.driver.wait_interrupt(CONFIG);
    assert_eq!(isr(&bench) & ISR_CONFIG, ISR_CONFIG);
    let connected = generation(&bench);
    assert_ne!(connected, before);

    // The front-end goes.
    drop(front_end);
    bench.driver.wait_status(0);
    bench.driver.wait_interrupt(CONFIG);
    assert_eq!(isr(&bench) & ISR_CONFIG, ISR_CONFIG);
    assert_ne!(generation(&bench), connected);

    // The driver goes. The front-end hears of it within a second; on a busy machine in one of a
    // few attempts.
    let mut fastest = PATIENCE;
    for _ in 0..5 {
        let mut front_end = bench.connect_up();
        bench.driver.set_status(0);
        let start = Instant::now();
        assert_eq!(bench.driver.status(), 0);
        front_end.is_hung_up();
        fastest = fastest.min(start.elapsed());
        bench.driver.no_interrupt(CONFIG);
    }
    assert!(fastest < Duration::from_secs(1), "{fastest:?}");

    // Byte by byte, and a disconnect in the middle.
    let front_end = bench.connect();
    write(&bench.driver.config, 0, BACKEND_UP as u8);
    bench.driver.wait_status(BOTH_UP);
    drop(front_end);
    bench.driver.wait_status(0);
    for byte in 1..4 {
        write(&bench.driver.config, byte, 0u8);
    }
    assert_eq!(bench.driver.status(), 0);
}

pub(super) fn c20_early_front_end(target: &dyn Target) {
    let mut bench = Bench::new(target, &Setup::default());
    let mut front_end = bench.connect();
    // It talks before anybody listens, and lives through resets of every kind.
    front_end.plain(request::GET_FEATURES);
    for _ in 0..3 {
        bench.driver.reset();
    }
    bench.driver.function.reset().unwrap();
    bench.driver.start(0, 16, 8192);
    bench.driver.set_status(BACKEND_UP);
    bench.driver.wait_status(BOTH_UP);
    bench.driver.expect(request::GET_FEATURES);
    bench.driver.answer(request::GET_FEATURES, 1 << 32);
    assert_eq!(front_end.answer(request::GET_FEATURES), 1 << 32);
}

/// Neither side; the driver waits; the front-end waits; connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Idle,
    Armed,
    Open,
    Connected,
}

use State::{Armed, Connected, Idle, Open};

impl State {
    fn status(self) -> u32 {
        match self {
            Idle | Open => 0,
            Armed => BACKEND_UP,
            Connected => BOTH_UP,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Up,
    Down,
    Opened,
    Closed,
    Replaced,
    WriteError,
    Reset,
    FrontEndViolation,
    BackEndViolation,
}

/// Event; where it leads from idle, armed, open, connected.
const TABLE: [(Event, [State; 4]); 9] = [
    (Event::Up, [Armed, Armed, Connected, Connected]),
    (Event::Down, [Idle, Idle, Open, Idle]),
    (Event::Opened, [Open, Connected, Open, Connected]),
    (Event::Closed, [Idle, Armed, Idle, Idle]),
    (Event::Replaced, [Idle, Armed, Idle, Idle]),
    (Event::WriteError, [Idle, Armed, Open, Idle]),
    (Event::Reset, [Idle, Idle, Open, Idle]),
    (Event::FrontEndViolation, [Idle, Armed, Open, Idle]),
    (Event::BackEndViolation, [Idle, Armed, Open, Idle]),
];

/// A bench with the front-end that may be there.
struct Machine {
    bench: Bench,
    front_end: Option<FrontEnd>,
    extra: Option<FrontEnd>,
}

impl Machine {
    fn new(target: &dyn Target) -> Self {
        Self {
            bench: Bench::started(target),
            front_end: None,
            extra: None,
        }
    }

    /// Lets an event happen. False if there is no such thing here.
    fn happen(&mut self, event: Event) -> bool {
        let status = self.bench.driver.status();
        match event {
            Event::Up => self.bench.driver.set_status(status | BACKEND_UP),
            Event::Down => self.bench.driver.set_status(status & !BACKEND_UP),
            Event::Opened => {
                let place = match self.front_end {
                    None => &mut self.front_end,
                    Some(_) => &mut self.extra,
                };
                let before = self.bench.descriptors();
                *place = Some(self.bench.connect());
                // Nothing else tells when a front-end that must wait is there.
                if self.extra.is_none() {
                    let mine = self.bench.machine.process() == std::process::id();
                    let both = before + 1 + usize::from(mine);
                    self.bench.wait_descriptors(both);
                }
            }
            Event::Closed => self.front_end = None,
            Event::Replaced => return self.bench.machine.replace_socket(),
            Event::WriteError => {
                if let Some(front_end) = &self.front_end {
                    front_end.refuse_to_read();
                }
                self.bench.driver.answer(request::GET_FEATURES, 0);
            }
            Event::Reset => self.bench.driver.start(0, 16, 8192),
            Event::FrontEndViolation => {
                if let Some(front_end) = &mut self.front_end {
                    front_end.send(request::GET_FEATURES, 2, &[], &[]);
                }
            }
            Event::BackEndViolation => {
                let bytes = message(request::GET_FEATURES, REPLY, &[0; 8]).to_bytes();
                for bad in [&bytes[..5], &bytes[..19]] {
                    self.bench.driver.post_tx(bad);
                    self.bench.driver.wait_tx();
                }
            }
        }
        true
    }

    /// Nobody is there any more: neither a front-end nor what is left of one.
    fn empty(&mut self) {
        self.front_end = None;
        self.extra = None;
        self.bench.driver.start(0, 16, 8192);
        let mut last = self.bench.connect();
        last.plain(request::UNKNOWN);
        let start = Instant::now();
        loop {
            assert!(start.elapsed() < PATIENCE, "it is not let in");
            match self.bench.driver.status() {
                // One that had left already was let in before.
                0 => self.bench.driver.set_status(BACKEND_UP),
                _ => pause(),
            }
            if let Some(message) = self.bench.driver.poll_rx() {
                self.bench.driver.post_rx();
                if message.request == request::UNKNOWN {
                    break;
                }
            }
        }
        self.bench.driver.set_status(0);
        last.is_hung_up();
        self.bench.driver.start(0, 16, 8192);
    }

    fn reach(&mut self, state: State) {
        self.empty();
        if matches!(state, Open | Connected) {
            self.happen(Event::Opened);
            std::thread::sleep(Duration::from_millis(2));
        }
        if matches!(state, Armed | Connected) {
            self.happen(Event::Up);
        }
        self.bench.driver.wait_status(state.status());
        if state == Connected {
            self.bench.driver.wait_interrupt(CONFIG);
        }
    }

    /// Wherever it is, a fresh start works.
    fn serves(&mut self) {
        self.empty();
        let mut front_end = self.bench.connect_up();
        front_end.plain(request::GET_FEATURES);
        self.bench.driver.expect(request::GET_FEATURES);
        self.bench.driver.answer(request::GET_FEATURES, 5);
        assert_eq!(front_end.answer(request::GET_FEATURES), 5);
    }
}

pub(super) fn c21_nine_events_in_four_states(target: &dyn Target) {
    let mut machine = Machine::new(target);
    for (number, from) in [Idle, Armed, Open, Connected].into_iter().enumerate() {
        for (event, leads) in TABLE {
            let to = leads[number];
            step(format!("{event:?} in {from:?}"));
            machine.reach(from);
            if !machine.happen(event) {
                continue;
            }
            machine.arrives(to);
            if from == Connected && to == Idle {
                match event {
                    // The driver knows what it did.
                    Event::Down | Event::Reset => machine.bench.driver.no_interrupt(CONFIG),
                    _ => machine.bench.driver.wait_interrupt(CONFIG),
                }
                if event != Event::WriteError
                    && let Some(front_end) = &mut machine.front_end
                {
                    front_end.is_hung_up();
                }
            }
            if to == Open {
                machine.happen(Event::Up);
                // What it sent while it waited is read now.
                let violated = event == Event::FrontEndViolation;
                machine.arrives(if violated { Idle } else { Connected });
            }
            machine.serves();
        }
    }
}

impl Machine {
    #[track_caller]
    fn arrives(&self, state: State) {
        self.bench.driver.wait_status(state.status());
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(self.bench.driver.status(), state.status());
    }
}

/// xorshift64: the same sequence in each run.
fn next(state: &mut u64) -> usize {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    (*state >> 33) as usize
}

pub(super) fn c21_any_sequence_of_events(target: &dyn Target) {
    let mut machine = Machine::new(target);
    let mut random = 0x9e37_79b9_7f4a_7c15;
    machine.empty();
    let mut state = Idle;
    let mut without = machine.bench.descriptors();
    for number in 0..600 {
        let (event, leads) = TABLE[next(&mut random) % TABLE.len()];
        // A second front-end waits its turn, and what a waiting one says is read later: both are
        // seen elsewhere.
        let waits = event == Event::Opened && machine.front_end.is_some()
            || event == Event::FrontEndViolation && state == Open;
        if waits {
            continue;
        }
        if machine.front_end.is_none() {
            without = machine.bench.descriptors();
        }
        step(format!("event {number}, {event:?} in {state:?}"));
        if !machine.happen(event) {
            continue;
        }
        state = leads[[Idle, Armed, Open, Connected]
            .iter()
            .position(|from| *from == state)
            .unwrap()];
        machine.arrives(state);
        if matches!(state, Idle | Armed) {
            // Nothing tells when the device has noticed that a waiting front-end left, save this.
            machine.front_end = None;
            if event != Event::Replaced {
                machine.bench.wait_descriptors(without);
            }
        }
    }
    machine.serves();
}

pub(super) fn c21_sent_to_nobody(target: &dyn Target) {
    let mut bench = Bench::started(target);
    let driver = &mut bench.driver;
    // Consumed, with no words; malformed or not.
    driver.answer(request::GET_FEATURES, 0xdead);
    driver.post_tx(&[1, 2, 3]);
    driver.wait_tx();
    // In the ring without a notification when the front-end comes.
    let bytes = message(request::GET_FEATURES, REPLY, &0xdeadu64.to_le_bytes()).to_bytes();
    driver.tx.offer(&[bytes.len() as u32], false, &bytes);
    let mut front_end = bench.connect_up();
    bench.driver.wait_tx();
    front_end.hears_nothing();
    front_end.plain(request::GET_FEATURES);
    bench.driver.expect(request::GET_FEATURES);
    bench.driver.answer(request::GET_FEATURES, 1);
    assert_eq!(front_end.answer(request::GET_FEATURES), 1);

    // A request of the back-end has no channel: consumed, not sent.
    bench.driver.send(2, PLAIN, &[]);
    front_end.hears_nothing();

    // An answer to a front-end that has gone does not reach the one after it.
    front_end.plain(request::GET_FEATURES);
    bench.driver.expect(request::GET_FEATURES);
    bench.close(front_end);
    bench.driver.tx.offer(&[bytes.len() as u32], false, &bytes);
    let front_end = bench.connect_up();
    bench.driver.wait_tx();
    front_end.hears_nothing();
}
