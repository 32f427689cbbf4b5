//! What devices of all kinds refuse in the same way.

use vvu::virtio::DeviceError;

use crate::vring::SetupError;

pub(super) fn setup(error: SetupError) -> DeviceError {
    tracing::warn!(%error, "ring refused");
    match error {
        SetupError::Size(_) => DeviceError::Unsupported("this ring size"),
        SetupError::Base { .. } => DeviceError::Unsupported("a ring that begins there"),
        SetupError::Area { .. } => DeviceError::Unsupported("rings at these addresses"),
        SetupError::Inflight { .. } => DeviceError::Unsupported("this in-flight buffer"),
        SetupError::Kick(_) => DeviceError::Unsupported("a kick of this kind"),
    }
}

/// Bytes of a configuration space from `offset` on: all of `data` or an error.
pub(super) fn read_space(space: &[u8], offset: u32, data: &mut [u8]) -> Result<(), DeviceError> {
    let start = offset as usize;
    let bytes = start
        .checked_add(data.len())
        .and_then(|end| space.get(start..end))
        .ok_or(DeviceError::Config {
            access: "read",
            offset,
            len: data.len(),
        })?;
    data.copy_from_slice(bytes);
    Ok(())
}

/// A driver accepts nothing but what was offered.
pub(super) fn check_features(acked: u64, offered: u64) -> Result<(), DeviceError> {
    match acked & !offered {
        0 => Ok(()),
        _ => Err(DeviceError::Features { acked, offered }),
    }
}

/// All `running` rings are among those that `moved`: one without a new place would go on with the
/// old memory.
pub(super) fn check_moved(
    mut running: impl Iterator<Item = u16>,
    moved: impl Iterator<Item = u16> + Clone,
) -> Result<(), DeviceError> {
    match running.find(|index| !moved.clone().any(|moved| moved == *index)) {
        None => Ok(()),
        Some(index) => Err(DeviceError::RingState {
            index,
            state: "running but has no place in the new memory",
        }),
    }
}
