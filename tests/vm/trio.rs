//! The usual line-ups: two neighbours and what serves them.

use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::guest::Guest;
use crate::job::Job;
use crate::lab::Lab;
use crate::process::Process;
use crate::served::ServedFunction;
use crate::traffic;

/// From the start of `vvu` until neighbours that boot meanwhile can talk.
const SETTLE: Duration = Duration::from_secs(20);

/// What `vvu` says when its ports can be used, and how soon.
const READY: &str = "ready";
const START: Duration = Duration::from_secs(10);

/// An appliance whose `vvu` switches between two neighbours.
pub struct Trio {
    /// First neighbour.
    pub a: Guest,
    /// Second neighbour.
    pub b: Guest,
    /// The appliance.
    pub appliance: Guest,
    /// `vvu net` in the appliance.
    pub vvu: Job,
    /// What serves the appliance's functions, if its VMM does not.
    pub functions: Vec<ServedFunction>,
    /// Where they live.
    pub lab: Lab,
}

impl Trio {
    /// Boots all three, with this many queue pairs and jumbo frames, and waits until the
    /// neighbours can talk.
    pub fn boot(lab: Lab, pairs: u16) -> Result<Trio> {
        let appliance = lab.appliance().functions(2).boot()?;
        let a = lab
            .neighbour("a")
            .via(&appliance, 0)
            .queue_pairs(pairs)
            .mtu(9000)
            .boot()?;
        let b = lab
            .neighbour("b")
            .via(&appliance, 1)
            .queue_pairs(pairs)
            .mtu(9000)
            .boot()?;
        Trio::start(lab, appliance, a, b, Vec::new())
    }

    /// The same without a patch in any VMM: `vvu device` on the host serves a function to the
    /// appliance for each neighbour.
    pub fn boot_served(lab: Lab, pairs: u16) -> Result<Trio> {
        let functions = vec![
            ServedFunction::start(&lab, "a")?,
            ServedFunction::start(&lab, "b")?,
        ];
        let appliance = lab.appliance().served(&functions).boot()?;
        let boot = |name, number: usize| {
            lab.neighbour(name)
                .via(&appliance, number)
                .memory_of(&functions[number])
                .queue_pairs(pairs)
                .mtu(9000)
                .boot()
        };
        let (a, b) = (boot("a", 0)?, boot("b", 1)?);
        Trio::start(lab, appliance, a, b, functions)
    }

    /// The first line-up with these properties of both neighbours' cards.
    pub fn boot_with(lab: Lab, pairs: u16, properties: &str) -> Result<Trio> {
        let appliance = lab.appliance().functions(2).boot()?;
        let boot = |name, number| {
            lab.neighbour(name)
                .via(&appliance, number)
                .queue_pairs(pairs)
                .mtu(9000)
                .properties(properties)
                .boot()
        };
        let (a, b) = (boot("a", 0)?, boot("b", 1)?);
        Trio::start(lab, appliance, a, b, Vec::new())
    }

    fn start(
        lab: Lab,
        appliance: Guest,
        a: Guest,
        b: Guest,
        functions: Vec<ServedFunction>,
    ) -> Result<Trio> {
        let vvu = start_vvu(&appliance)?;
        let trio = Trio {
            a,
            b,
            appliance,
            vvu,
            functions,
            lab,
        };
        trio.settle()?;
        Ok(trio)
    }

    /// Starts `vvu` again, after it or the appliance has ended.
    pub fn restart_vvu(&mut self) -> Result<()> {
        self.vvu = start_vvu(&self.appliance)?;
        Ok(())
    }

    /// Waits until the neighbours are up and can talk in both directions.
    pub fn settle(&self) -> Result<()> {
        await_talk(&self.a, &self.b).with_context(|| format!("vvu says: {}", self.vvu.printed()))
    }
}

/// Properties of a card that leaves everything to its driver.
pub const NO_OFFLOADS: &str = "csum=off,gso=off,host_tso4=off,host_tso6=off,host_ecn=off,\
    guest_csum=off,guest_tso4=off,guest_tso6=off,guest_ecn=off";

/// An appliance whose `vvu` switches between three neighbours, with a kernel that knows every
/// offload: two whose cards have all there is, and one whose card has next to nothing.
pub struct Quartet {
    /// The first two, and the appliance.
    pub trio: Trio,
    /// The third one.
    pub plain: Guest,
}

impl Quartet {
    /// Boots all four, the first two with packed rings in two queue pairs, and waits until they
    /// can talk.
    pub fn boot(lab: Lab) -> Result<Quartet> {
        let appliance = lab.appliance().functions(3).boot()?;
        let packed = |name, number| {
            lab.neighbour(name)
                .via(&appliance, number)
                .queue_pairs(2)
                .properties("packed=on")
                .boot()
        };
        let (a, b) = (packed("a", 0)?, packed("b", 1)?);
        let plain = lab
            .neighbour("plain")
            .via(&appliance, 2)
            .properties(&format!("mrg_rxbuf=off,{NO_OFFLOADS}"))
            .boot()?;
        let trio = Trio::start(lab, appliance, a, b, Vec::new())?;
        let quartet = Quartet { trio, plain };
        await_talk(&quartet.trio.a, &quartet.plain)?;
        Ok(quartet)
    }

    /// Puts neighbours whose VMMs know nothing of networks in the place of the first two, and
    /// starts `vvu` again so that it serves their control queues, too.
    pub fn without_shims(&mut self) -> Result<()> {
        const NAMES: [&str; 2] = ["bare-a", "bare-b"];
        let trio = &mut self.trio;
        if trio.a.name() == NAMES[0] {
            return Ok(());
        }
        trio.vvu.stop()?;
        let ports = trio.appliance.functions().zip(["control", "control", ""]);
        let ports: Vec<String> = ports
            .zip(4..)
            .map(|((bdf, control), number)| match control {
                "" => format!("vvu:{bdf}"),
                // Hardware addresses are those of the neighbours to come.
                control => format!("vvu:{bdf},{control},pairs=2,mac=52:54:00:77:00:{number:02x}"),
            })
            .collect();
        trio.vvu = start_vvu_with(&trio.appliance, &ports)?;
        for (number, name) in NAMES.into_iter().enumerate() {
            // Its turn comes when the one before it has ended.
            let bare = trio.lab.neighbour(name).via(&trio.appliance, number);
            let bare = bare.queue_pairs(2).bare().boot()?;
            match number {
                0 => trio.a = bare,
                _ => trio.b = bare,
            }
        }
        trio.settle()?;
        await_talk(&trio.a, &self.plain)
    }
}

/// Binds an appliance's functions and starts `vvu net` with a port for each.
pub fn start_vvu(appliance: &Guest) -> Result<Job> {
    let ports: Vec<String> = appliance
        .functions()
        .map(|bdf| format!("vvu:{bdf}"))
        .collect();
    start_vvu_with(appliance, &ports)
}

/// Binds an appliance's functions and starts `vvu net` with the given ports.
pub fn start_vvu_with(appliance: &Guest, ports: &[String]) -> Result<Job> {
    for bdf in appliance.functions() {
        appliance.run(&["vvu", "bind", bdf])?;
    }
    let mut argv = vec!["vvu", "-v", "net"];
    for port in ports {
        argv.extend(["--port", port]);
    }
    let vvu = appliance.start(&argv)?;
    vvu.wait_for_text(READY, START)?;
    Ok(vvu)
}

/// A `vvu` on the host that switches between two neighbours over AF_UNIX.
pub struct HostTrio {
    /// First neighbour; `vvu` connects to it.
    pub a: Guest,
    /// Second neighbour; `vvu` listens for it.
    pub b: Guest,
    /// `vvu net` on the host.
    pub vvu: Process,
    ports: [String; 2],
    /// Where they live.
    pub lab: Lab,
}

impl HostTrio {
    /// Boots both neighbours and waits until they can talk.
    pub fn boot(lab: Lab) -> Result<HostTrio> {
        let (to_a, to_b) = (lab.socket("a"), lab.socket("b"));
        let a = lab.neighbour("a").unix_listening(&to_a).mtu(9000).boot()?;
        let ports = [
            format!("unix:{},client", to_a.display()),
            format!("unix:{}", to_b.display()),
        ];
        let mut vvu = lab.vvu(&ports)?;
        vvu.wait_for_text(READY, START)?;
        let b = lab.neighbour("b").unix(&to_b).mtu(9000).boot()?;
        let trio = HostTrio {
            a,
            b,
            vvu,
            ports,
            lab,
        };
        await_talk(&trio.a, &trio.b).with_context(|| format!("vvu says: {}", trio.vvu.output()))?;
        Ok(trio)
    }

    /// Ends `vvu` with SIGKILL and starts it again.
    pub fn restart_vvu(&mut self) -> Result<()> {
        self.vvu.kill()?;
        self.vvu = self.lab.vvu(&self.ports)?;
        self.vvu.wait_for_text(READY, START)?;
        Ok(())
    }
}

fn await_talk(a: &Guest, b: &Guest) -> Result<()> {
    a.ready()?;
    b.ready()?;
    ensure!(
        traffic::answers_within(a, b, SETTLE)?,
        "{} does not answer {} within {SETTLE:?}",
        b.name(),
        a.name()
    );
    Ok(())
}
