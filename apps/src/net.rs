//! `vvu net`: ports, a session for each virtio-net device, and a switch between them.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use vvu::transport::Transport;
use vvu_pmd::backend::{GenConfig, PortId, PortKind};
use vvu_pmd::net::NetConfig;

use crate::READY;
use crate::args::Net;
use crate::captures::Captures;
use crate::port::{Device, Kind, Mac, PortSpec};
use crate::signals::{Request, Shutdown};
use crate::wiring::Wiring;

/// Runs until a signal says to stop.
pub(crate) fn run(net: &Net) -> anyhow::Result<()> {
    check_names(&net.ports)?;
    let mut captures = Captures::new(&net.captures, &net.ports)?;
    let mirrors = mirrors(&net.ports)?;
    let shutdown = Shutdown::new()?;
    let request = Request::new()?;
    let mut wiring = start(net)?;
    let mut ids = Vec::new();
    for (number, port) in net.ports.iter().enumerate() {
        let id = add_port(&mut wiring, net, number as u64, port);
        ids.push(id.with_context(|| format!("port {}", port.name))?);
    }
    for (watched, watching) in mirrors {
        wiring.workers.mirror(ids[watched], ids[watching])?;
    }
    captures.start(&wiring.workers, &ids)?;
    tracing::info!(ports = net.ports.len(), "{READY}");

    let start = Instant::now();
    let interval = net.serving.stats.map(Duration::from_secs);
    let mut next = interval.map(|interval| start + interval);
    while !shutdown.wait_or(&request, next) {
        if request.take()
            && let Err(error) = captures.toggle(&wiring.workers, &ids)
        {
            tracing::error!("{error:#}");
        }
        if let (Some(at), Some(interval)) = (next, interval)
            && Instant::now() >= at
        {
            next = Some(at + interval);
            println!("after {} s", start.elapsed().as_secs());
            println!("{}", wiring.workers.stats());
        }
    }

    tracing::info!("stopping");
    wiring.stop();
    if interval.is_some() {
        println!("at the end\n{}", wiring.workers.stats());
    }
    Ok(())
}

/// Two ports on one socket or function would take turns at stealing it from each other.
fn check_names(ports: &[PortSpec]) -> anyhow::Result<()> {
    let mut seen = BTreeSet::new();
    for port in ports {
        let internal = matches!(
            port.kind,
            Kind::Null | Kind::Generator { .. } | Kind::Echo { .. } | Kind::Pcap(_)
        );
        if !internal && !seen.insert(&port.name) {
            bail!(
                "port {} is given twice; each needs one of its own",
                port.name
            );
        }
    }
    Ok(())
}

/// Which ports are watched, and by which, by their places in `ports`.
fn mirrors(ports: &[PortSpec]) -> anyhow::Result<Vec<(usize, usize)>> {
    let mut mirrors = Vec::new();
    for (watched, port) in ports.iter().enumerate() {
        let Some(name) = &port.rules.mirror else {
            continue;
        };
        let named = |(place, port): (usize, &PortSpec)| (port.name == *name).then_some(place);
        let found: Vec<_> = ports.iter().enumerate().filter_map(named).collect();
        let [watching] = found[..] else {
            let names: Vec<_> = ports.iter().map(|port| &*port.name).collect();
            bail!(
                "port {}: option mirror: {} ports are called {name:?}; name one of {}",
                port.name,
                found.len(),
                names.join(" ")
            );
        };
        mirrors.push((watched, watching));
    }
    Ok(mirrors)
}

fn start(net: &Net) -> anyhow::Result<Wiring> {
    let cpus = net.serving.cpus()?;
    let ageing = u32::try_from(net.ageing).context("--ageing is longer than 136 years")?;
    Wiring::new(&cpus, ageing, net.serving.poll.into())
}

/// Adds one port to the switch; a virtio-net device also gets a session.
fn add_port(
    wiring: &mut Wiring,
    net: &Net,
    number: u64,
    port: &PortSpec,
) -> anyhow::Result<PortId> {
    let kind = match &port.kind {
        Kind::Null => PortKind::Null,
        Kind::Generator { size } => PortKind::Gen(GenConfig {
            size: (*size).into(),
            ..GenConfig::default()
        }),
        Kind::Echo { swap } => PortKind::Echo { swap: *swap },
        Kind::Tap(config) => PortKind::Tap(config.clone()),
        Kind::Packet(name) => PortKind::Packet(name.clone()),
        Kind::Xdp(config) => PortKind::Xdp(config.clone()),
        Kind::Pcap(config) => PortKind::File(config.clone()),
        Kind::Card { device, .. } => PortKind::Vhost(card(net, number, port, device)),
    };
    let own = match &kind {
        PortKind::Vhost(card) => Some(card.mac),
        _ => None,
    };
    let rules = port.rules.rules(own).map_err(anyhow::Error::msg)?;
    // The transport first: it is what usually cannot be had.
    let transport = transport(net, port)?;
    wiring.add(&port.name, kind, transport, rules)
}

fn transport(net: &Net, port: &PortSpec) -> anyhow::Result<Option<Box<dyn Transport>>> {
    let Kind::Card { at, device } = &port.kind else {
        return Ok(None);
    };
    at.transport(device.queues(), net.serving.reach()).map(Some)
}

fn card(net: &Net, number: u64, port: &PortSpec, device: &Device) -> NetConfig {
    let counted = net.mac.map(|mac| mac.plus(number));
    let Mac(mac) = device.mac.or(counted).unwrap_or_else(|| mac_of(&port.name));
    NetConfig {
        mac,
        mtu: device.mtu,
        pairs: device.pairs,
        speed: device.speed,
        control: device.control,
    }
}

/// An address of our own for a port without one: locally administered, the same at every start,
/// different for ports of different names (FNV-1a).
fn mac_of(name: &str) -> Mac {
    let hash = name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let [a, b, c, d, e, ..] = hash.to_be_bytes();
    Mac([0x02, a, b, c, d, e])
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn mirrors_name_one_other_port() {
        let ports = |all: &[&str]| all.iter().map(|text| text.parse().unwrap()).collect();
        let of = |all: &[&str]| mirrors(&ports(all) as &Vec<PortSpec>);
        let found = of(&[
            "unix:/a,mirror=unix:/m",
            "null:",
            "unix:/m",
            "gen:mirror=unix:/m",
        ]);
        assert_eq!(found.unwrap(), [(0, 2), (3, 2)]);
        for bad in [
            &["unix:/a,mirror=unix:/b"][..],
            &["null:", "null:", "gen:mirror=null"],
        ] {
            let error = of(bad).unwrap_err().to_string();
            assert!(error.contains("name one of"), "{error}");
        }
    }
}
