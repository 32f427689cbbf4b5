//! `vvu list`, `info`, `bind`, `unbind`, and opening a function for a port.

use anyhow::{Context, bail};
use vvu::device::{Device, Options, Rule};
use vvu::pci::sysfs::{FunctionInfo, Sysfs};
use vvu::pci::{Address, Location, PciFunction, Structures};
use vvu::vfio::{VfioFunction, VfioOptions};

use crate::args::{Rebind, RuleName};

/// Opens a function of this machine.
pub(crate) fn take(
    address: Address,
    allow_unsafe_interrupts: bool,
) -> anyhow::Result<Box<dyn PciFunction>> {
    let options = VfioOptions {
        allow_unsafe_interrupts,
        ..VfioOptions::default()
    };
    Ok(Box::new(VfioFunction::open(address, options)?))
}

/// Brings a VVU function up, for so many virtqueues: from then on a front-end can connect.
pub(crate) fn open(
    function: Box<dyn PciFunction>,
    rule: Option<RuleName>,
    queues: u16,
) -> anyhow::Result<Device> {
    let rule = rule.map(|rule| match rule {
        RuleName::Whole => Rule::Whole,
        RuleName::Packed => Rule::Packed,
        RuleName::Told => Rule::Told,
    });
    let options = Options {
        rule,
        rings: queues,
        ..Options::default()
    };
    Ok(Device::open(function, options)?)
}

/// One line for each VVU function.
pub(crate) fn list() -> anyhow::Result<()> {
    let functions = Sysfs::default().list(&[])?;
    if functions.is_empty() {
        println!("no virtio-vhost-user functions here");
        return Ok(());
    }
    println!(
        "{:<13} {:<10} {:<16} {:<6} note",
        "address", "id", "driver", "group"
    );
    for function in functions {
        let note = match function.structures() {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        };
        println!(
            "{:<13} {:04x}:{:04x}  {:<16} {:<6} {note}",
            function.address.to_string(),
            function.space.vendor(),
            function.space.device(),
            function.driver.as_deref().unwrap_or("-"),
            function
                .group
                .as_ref()
                .map_or("-".to_owned(), |group| group.number.to_string()),
        );
    }
    Ok(())
}

/// Everything about one function. What only the device itself can tell is asked if it is bound to
/// vfio-pci and nobody else has it.
pub(crate) fn info(address: &Address) -> anyhow::Result<()> {
    let function = Sysfs::default().info(*address)?;
    let structures = vvu_structures(&function)?;
    println!("address        {address}");
    println!(
        "id             {:04x}:{:04x}",
        function.space.vendor(),
        function.space.device()
    );
    println!(
        "driver         {}",
        function.driver.as_deref().unwrap_or("none")
    );
    if let Some(group) = &function.group {
        let members: Vec<_> = group.members.iter().map(ToString::to_string).collect();
        println!("IOMMU group    {} ({})", group.number, members.join(", "));
    } else {
        println!("IOMMU group    none");
    }
    show_structures(&structures);
    if function.driver.as_deref() != Some("vfio-pci") {
        println!("(bind it with `vvu bind {address}` to see what the device says about itself)");
        return Ok(());
    }
    match take(*address, false).and_then(|function| open(function, None, 0)) {
        Ok(mut device) => {
            show_identity(&device);
            device.shutdown();
        }
        Err(error) => println!("(the device cannot be asked: {error:#})"),
    }
    Ok(())
}

fn show_structures(structures: &Structures) {
    let line = |name: &str, at: &Location| {
        let length = at.length.map_or("to its end".to_owned(), |length| {
            format!("{length:#x} bytes")
        });
        println!("{name:<14} BAR {} at {:#x}, {length}", at.bar, at.offset);
    };
    line("common", &structures.common);
    line("notify", &structures.notify.location);
    line("isr", &structures.isr);
    line("device", &structures.device);
    line("doorbells", &structures.doorbells.location);
    println!("{:<14} {} bytes apart", "", structures.doorbells.multiplier);
    line("notifications", &structures.notifications);
    line("memory", &structures.memory);
    for (name, at) in [("log", &structures.log), ("inflight", &structures.inflight)] {
        if let Some(at) = at {
            line(name, at);
        }
    }
}

fn show_identity(device: &Device) {
    let identity = device.identity();
    let uuid = u128::from_be_bytes(identity.uuid);
    println!("uuid           {}", hyphenated(uuid));
    println!("rings          {}", identity.rings);
    println!("features       {:#x}", identity.features);
    println!(
        "memory window  {:#x} bytes, rule {}",
        identity.window, identity.rule
    );
    if let Some(regions) = identity.max_mem_regions {
        println!("memory regions {regions}");
    }
}

/// A uuid as RFC 4122 writes it.
fn hyphenated(uuid: u128) -> String {
    let hex = format!("{uuid:032x}");
    let parts = [0..8, 8..12, 12..16, 16..20, 20..32];
    parts
        .map(|range| hex.get(range).unwrap_or_default())
        .join("-")
}

fn vvu_structures(function: &FunctionInfo) -> anyhow::Result<Structures> {
    function
        .structures()
        .with_context(|| format!("{} is not a virtio-vhost-user function", function.address))
}

/// Hands functions to vfio-pci.
pub(crate) fn bind(change: &Rebind) -> anyhow::Result<()> {
    let sysfs = Sysfs::default();
    // All are looked at before the first is touched.
    let mut plans = Vec::new();
    for address in &change.addresses {
        let function = sysfs.info(*address)?;
        vvu_structures(&function)?;
        match &function.group {
            None => bail!(
                "{address} has no IOMMU group, so vfio-pci could not confine it; give this \
                 machine an IOMMU (QEMU: -device intel-iommu,intremap=on) and turn it on (kernel: \
                 intel_iommu=on)"
            ),
            Some(_) => plans.push((*address, sysfs.plan_bind(&function)?)),
        }
    }
    carry_out(&sysfs, &plans, change.dry_run, "bound to vfio-pci")
}

/// Gives functions back.
pub(crate) fn unbind(change: &Rebind) -> anyhow::Result<()> {
    let sysfs = Sysfs::default();
    let mut plans = Vec::new();
    for address in &change.addresses {
        let function = sysfs.info(*address)?;
        match function.driver.as_deref() {
            Some("vfio-pci") => plans.push((*address, sysfs.plan_unbind(&function, None)?)),
            Some(other) => bail!("{address} is bound to {other}, not to vfio-pci"),
            None => bail!("{address} is bound to no driver"),
        }
    }
    carry_out(&sysfs, &plans, change.dry_run, "given back")
}

fn carry_out(
    sysfs: &Sysfs,
    plans: &[(Address, vvu::pci::sysfs::Plan)],
    dry_run: bool,
    done: &str,
) -> anyhow::Result<()> {
    for (address, plan) in plans {
        if dry_run {
            for step in plan.steps() {
                println!("{step}");
            }
            continue;
        }
        sysfs.apply(*address, plan)?;
        let driver = sysfs.info(*address)?.driver;
        println!(
            "{address} {done}, driver: {}",
            driver.as_deref().unwrap_or("none")
        );
    }
    Ok(())
}
