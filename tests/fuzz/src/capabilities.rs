//! Bytes as a configuration space.

use vvu::pci::{CONFIG_LEN, ConfigSpace, Structures};

/// Walks the capability list and looks for a VVU function's structures.
pub fn run(data: &[u8]) {
    let space = ConfigSpace::new(data.to_vec());
    let mut seen = [false; CONFIG_LEN];
    for capability in space.capabilities() {
        let at = usize::from(capability.offset);
        assert!(at >= 64 && at.is_multiple_of(4), "a capability at {at}");
        assert_eq!(capability.bytes, &space.bytes()[at..]);
        assert!(!std::mem::replace(&mut seen[at], true), "{at} came twice");
    }
    assert!(space.msix_vectors() <= 2048);
    let _ = (space.class(), space.revision(), space.subsystem());
    match Structures::find(&space) {
        Ok(found) => {
            let all = [
                Some(found.common),
                Some(found.notify.location),
                Some(found.isr),
                Some(found.device),
                Some(found.doorbells.location),
                Some(found.notifications),
                Some(found.memory),
                found.log,
                found.inflight,
            ];
            assert!(all.into_iter().flatten().all(|location| location.bar <= 5));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
