//! Cost per packet as ports and addresses become many, against that of one: in instructions,
//! which are exact, and in time, in alternation.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use vvu_pmd::net::feature as net;
use vvu_pmd::vring::feature as ring;

use crate::callgrind::{self, cell_done, measured_poll};
use crate::plot::{self, Line};
use crate::rig::{BURST, Guest, Rig, mac};

/// What may be asked for.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// How often each point is timed, in turn with all others
    #[arg(long, value_name = "N", default_value_t = 11, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Write a plot (SVG)
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
    /// Run the cells, under callgrind
    #[arg(long, hide = true)]
    inner: bool,
}

const SIZE: usize = 64;
/// Buffers no larger than such frames need, so that few pages hold them: guests whose memory is
/// hugepages do not wait for translations either.
const BUFFER: usize = 256;

/// What becomes many.
#[derive(Debug, Clone, Copy)]
enum Many {
    /// Ports, all of them busy.
    Busy,
    /// Ports, one of them busy.
    Quiet,
    /// Addresses, each frame for the next of them.
    Addresses,
}

/// What is counted up, its name, and how far.
const AXES: [(Many, &str, &[usize]); 3] = [
    (Many::Busy, "ports, all busy", &[1, 2, 4, 8, 16, 32, 64]),
    (Many::Quiet, "ports, one busy", &[1, 2, 4, 8, 16, 32, 64]),
    (
        Many::Addresses,
        "addresses",
        &[1, 4, 16, 64, 256, 1024, 4096, 16384, 65536],
    ),
];

fn points() -> impl Iterator<Item = (Many, usize)> {
    let all = AXES.into_iter();
    all.flat_map(|(many, _, counts)| counts.iter().map(move |count| (many, *count)))
}

/// Guests, and what they send.
struct Drivers {
    guests: Vec<Guest>,
    senders: usize,
    /// Whom all frames are for: the first of its addresses, or one after the other.
    to: u16,
    addresses: usize,
    /// Addresses that a guest sends from: two in turn where frames shall not form runs.
    sources: u16,
    sent: usize,
}

impl Drivers {
    /// Guests have a burst ready.
    fn send(&mut self) {
        let Self {
            to,
            addresses,
            sources,
            sent,
            ..
        } = self;
        for guest in &mut self.guests[..self.senders] {
            let number = guest.number;
            guest.send(SIZE, || {
                *sent += 1;
                // Odd, so that all are met, in no order that a processor would guess.
                let address = *sent * 40503 % *addresses;
                let source = *sent as u16 % *sources;
                [mac(*to, address as u16), mac(number, source)]
            });
        }
    }

    /// Guests take what came.
    fn receive(&mut self) {
        for guest in &mut self.guests {
            guest.receive();
        }
    }
}

/// A switch, and guests that send through it.
fn load(many: Many, count: usize) -> anyhow::Result<(Rig, Drivers)> {
    let mut rig = Rig::new()?;
    let features = ring::VERSION_1 | net::MAC | net::MRG_RXBUF;
    let guests = match many {
        Many::Busy | Many::Quiet => count,
        Many::Addresses => 2,
    };
    let guests = (0..guests).map(|_| rig.guest(features, BUFFER));
    let guests = guests.collect::<Result<Vec<_>, _>>()?;
    let mut drivers = Drivers {
        senders: match many {
            Many::Busy => guests.len(),
            Many::Quiet | Many::Addresses => 1,
        },
        guests,
        to: 1,
        addresses: 1,
        sources: 1,
        sent: 0,
    };
    if let Many::Addresses = many {
        drivers.addresses = count;
        drivers.sources = 2;
        learn(&mut rig, &mut drivers);
    } else {
        drivers.to = rig.echo();
        rig.learn(drivers.to);
    }
    for _ in 0..16 {
        drivers.send();
        rig.switch.poll(0);
        drivers.receive();
        // Who is quiet rests.
        rig.switch.rest();
    }
    Ok((rig, drivers))
}

/// The second guest uses all its addresses.
fn learn(rig: &mut Rig, drivers: &mut Drivers) {
    let mut number = 0;
    while number < drivers.addresses {
        let addresses = || {
            let from = mac(1, (number % drivers.addresses) as u16);
            number += 1;
            [mac(0, 0), from]
        };
        drivers.guests[1].send(SIZE, addresses);
        rig.switch.poll(0);
        drivers.guests[0].receive();
    }
}

fn run_cells() -> anyhow::Result<()> {
    for (many, count) in points() {
        let (mut rig, mut drivers) = load(many, count)?;
        let before = rig.packets();
        for _ in 0..16 {
            drivers.send();
            measured_poll(&mut rig.switch);
            drivers.receive();
        }
        rig.check()?;
        cell_done(rig.packets() - before);
    }
    Ok(())
}

/// Nanoseconds per packet. The guests are on a thread of their own, as they are in truth: what
/// they write comes from another processor's cache, however few they are.
fn time(many: Many, count: usize) -> anyhow::Result<f64> {
    const PACKETS: usize = 1 << 15;
    let (mut rig, mut drivers) = load(many, count)?;
    let rounds = PACKETS / BURST / drivers.senders;
    let before = rig.packets();
    let turn = AtomicUsize::new(0);
    let until = |number| {
        let mut looks = 0u32;
        while turn.load(Ordering::Acquire) != number {
            looks += 1;
            match looks.is_multiple_of(1024) {
                true => std::thread::yield_now(),
                false => std::hint::spin_loop(),
            }
        }
    };
    let taken = std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..rounds {
                drivers.send();
                turn.store(2 * round + 1, Ordering::Release);
                until(2 * round + 2);
                drivers.receive();
            }
        });
        let mut taken = Duration::ZERO;
        for round in 0..rounds {
            until(2 * round + 1);
            let start = Instant::now();
            rig.switch.poll(0);
            taken += start.elapsed();
            turn.store(2 * round + 2, Ordering::Release);
        }
        taken
    });
    let packets = rig.packets() - before;
    Ok(taken.as_nanos() as f64 / packets as f64)
}

pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    if args.inner {
        return run_cells();
    }
    let instructions = callgrind::count(&["scaling", "--inner"])?;
    let mut times = vec![Vec::new(); instructions.len()];
    for _ in 0..args.rounds {
        let mut one = 1.0;
        for ((many, count), times) in points().zip(&mut times) {
            let now = time(many, count)?;
            if count == 1 {
                one = now;
            }
            times.push((now, now / one));
        }
    }
    let mut cells = points().zip(instructions.iter().zip(&mut times));
    let mut lines = Vec::new();
    println!("| | | instructions | of one | ns | of one |\n|---|---|---|---|---|---|");
    for (_, name, counts) in AXES {
        let mut one = 1.0;
        let mut exact = Vec::new();
        let mut timed = Vec::new();
        for count in counts {
            let (_, (instructions, times)) = cells.next().context("a cell is missing")?;
            if *count == 1 {
                one = *instructions;
            }
            let ratio = instructions / one;
            let [ns, ..] = spread(times.iter().map(|(ns, _)| *ns));
            let [median, low, high] = spread(times.iter().map(|(_, ratio)| *ratio));
            println!(
                "| {name} | {count} | {instructions:.1} | {ratio:.2} | {ns:.1} \
                 | {median:.2} ({low:.2} to {high:.2}) |"
            );
            exact.push((*count, ratio));
            timed.push((*count, median));
        }
        let title = name.to_owned();
        lines.push((
            title,
            [Line::new("instructions", exact), Line::new("time", timed)],
        ));
    }
    if let Some(path) = &args.plot {
        std::fs::write(path, plot::draw(&lines)).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// Median, least and most.
pub(crate) fn spread(values: impl Iterator<Item = f64>) -> [f64; 3] {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    let at = |n: usize| values.get(n).copied().unwrap_or(f64::NAN);
    [at(values.len() / 2), at(0), at(values.len() - 1)]
}
