//! KVM or TCG. A `/dev/kvm` that exists proves nothing: KVM is used only after a guest has booted under it.

use std::fs::OpenOptions;
use std::sync::OnceLock;
use std::time::Duration;

use crate::lab::Lab;

/// How QEMU runs the guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The kernel's virtual machines.
    Kvm,
    /// Translation, one thread per virtual processor.
    Tcg,
}

impl Accelerator {
    /// The argument of `-accel`.
    pub fn argument(self) -> &'static str {
        match self {
            Accelerator::Kvm => "kvm",
            Accelerator::Tcg => "tcg,thread=multi",
        }
    }
}

/// A guest that KVM can run is up long before this.
const PROBE: Duration = Duration::from_secs(6);

/// The accelerator of this machine, probed once per process. `VVU_ACCEL` (`kvm` or `tcg`) decides without a probe.
pub fn choose(lab: &Lab) -> Accelerator {
    static CHOICE: OnceLock<Accelerator> = OnceLock::new();
    *CHOICE.get_or_init(|| match std::env::var("VVU_ACCEL").as_deref() {
        Ok("kvm") => Accelerator::Kvm,
        Ok("tcg") => Accelerator::Tcg,
        _ if boots_under_kvm(lab) => Accelerator::Kvm,
        _ => Accelerator::Tcg,
    })
}

fn boots_under_kvm(lab: &Lab) -> bool {
    let openable = OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_ok();
    openable
        && lab
            .probe(Accelerator::Kvm)
            .is_ok_and(|guest| guest.ready_within(PROBE).is_ok())
}
