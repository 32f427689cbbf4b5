//! The agent: `/init` of every guest.
//!
//! As process 1 it brings the guest up and serves the host over the second serial port. Traffic
//! runs in further processes of the same program (`agent task JSON`), so that it can be signalled
//! and measured as any other program.

#![forbid(unsafe_code)]

mod boot;
mod ethtool;
mod frames;
mod ping;
mod serve;
mod tcp;
mod udp;
mod usage;

use std::net::SocketAddrV4;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use serde::Serialize;
use vvu_tests::wire::{PingReport, Task};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let outcome = match arguments.as_slice() {
        [_, verb, task] if verb == "task" => run(task),
        _ if std::process::id() == 1 => boot::bring_up().and_then(serve::serve),
        _ => bail_usage(),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("agent: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn bail_usage() -> Result<()> {
    bail!("this is process 1 of a test guest, or: agent task JSON")
}

fn run(task: &str) -> Result<()> {
    let task = serde_json::from_str(task).context("not a task")?;
    match task {
        Task::Ping {
            to,
            size,
            count,
            interval_ms,
            timeout_ms,
        } => report(&ping::ping(to, size, count, interval_ms, timeout_ms)?),
        Task::TcpReceive { port, verify } => report(&tcp::receive(port, verify)?),
        Task::TcpSend {
            to,
            port,
            bytes,
            seed,
            verify,
        } => report(&tcp::send((to, port).into(), bytes, seed, verify)?),
        Task::TurnOn { device, feature } => report(&ethtool::turn_on(&device, &feature)?),
        Task::UdpSend { to, port, shape } => {
            report(&udp::send(SocketAddrV4::new(to, port), shape)?)
        }
        Task::UdpReceive { port, shape, merge } => report(&udp::receive(port, shape, merge)?),
        Task::UdpFlood {
            to,
            port,
            size,
            burst,
            millis,
        } => report(&udp::flood(
            SocketAddrV4::new(to, port),
            size,
            burst,
            millis,
        )?),
        Task::UdpCount { port } => report(&udp::count(port)?),
        Task::Echo { port, udp: false } => tcp::echo(port),
        Task::Echo { port, udp: true } => udp::echo(port),
        Task::Ask {
            to,
            port,
            udp,
            size,
            count,
        } => {
            let to = SocketAddrV4::new(to, port);
            let micros = match udp {
                true => udp::ask(to, size, count)?,
                false => tcp::ask(to.into(), size, count)?,
            };
            report(&PingReport {
                sent: count,
                micros,
            })
        }
        Task::Blast {
            device,
            to,
            size,
            millis,
        } => report(&frames::blast(&device, to, size, millis)?),
        Task::Count { device, millis } => report(&frames::count(&device, millis)?),
        Task::Cpu { pid, millis } => report(&usage::watch(pid, millis)?),
    }
}

fn report(report: &impl Serialize) -> Result<()> {
    println!("{}", serde_json::to_string(report)?);
    Ok(())
}
