//! Requests about the device as a whole: features, status, configuration space, reset.

use super::SessionError;
use super::connection::{Connection, Handled, Outcome};
use crate::protocol::{ConfigSpace, Features, ProtocolFeatures, Reply};
use crate::virtio::DeviceError;

/// Device id of a network card (VIRTIO 1.2, 5.1).
const DEVICE_NET: u16 = 1;
/// Feature bit of a network card: it has an MTU (VIRTIO 1.2, 5.1.3).
const NET_F_MTU: u64 = 1 << 3;
/// Device status: the driver is happy with the features (VIRTIO 1.2, 2.1).
const STATUS_FEATURES_OK: u8 = 8;
/// Largest piece of configuration space that one message reads or writes.
const MAX_CONFIG: usize = 4096;

impl Connection {
    /// Features offered: the device's without those that need a part of vhost-user that is not
    /// served (the dirty log, the IOTLB), and vhost-user's own.
    fn offered_features(&self) -> Features {
        let device = Features::from_bits_retain(self.device.features());
        device.difference(Features::LOG_ALL | Features::ACCESS_PLATFORM)
            | Features::PROTOCOL_FEATURES
    }

    pub(super) fn get_features(&mut self) -> Handled {
        Ok(Outcome::Reply(Reply::U64(self.offered_features().bits())))
    }

    pub(super) fn set_features(&mut self, bits: u64) -> Handled {
        let acked = Features::from_bits_retain(bits);
        let result = self.accept_features(acked);
        self.state.features_refused = result.is_err();
        result?;
        if !acked.contains(Features::PROTOCOL_FEATURES) {
            self.enable_all_rings()?;
        }
        Ok(Outcome::Done)
    }

    fn accept_features(&mut self, acked: Features) -> Result<(), SessionError> {
        let offered = self.offered_features();
        if !offered.contains(acked) {
            return Err(DeviceError::Features {
                acked: acked.bits(),
                offered: offered.bits(),
            }
            .into());
        }
        // Bit 30 belongs to vhost-user: the device does not know it.
        let device = |features: Features| features.difference(Features::PROTOCOL_FEATURES).bits();
        let (old, new) = (device(self.state.features), device(acked));
        if self.state.rings.iter().any(|ring| ring.running) {
            if old != new {
                return Err(SessionError::FeaturesInUse { old, new });
            }
        } else {
            self.device.set_features(new)?;
        }
        self.state.features = acked;
        self.status.features(acked.bits());
        tracing::info!("features {acked}");
        Ok(())
    }

    /// Protocol features that session, device and transport can serve together.
    pub(super) fn offered_protocol_features(&self) -> ProtocolFeatures {
        let mut features = ProtocolFeatures::MQ
            | ProtocolFeatures::REPLY_ACK
            | ProtocolFeatures::CONFIG
            | ProtocolFeatures::RESET_DEVICE
            | ProtocolFeatures::CONFIGURE_MEM_SLOTS
            | ProtocolFeatures::STATUS;
        if self.device.device_id() == DEVICE_NET {
            features |= ProtocolFeatures::RARP;
            if self.device.features() & NET_F_MTU != 0 {
                features |= ProtocolFeatures::MTU;
            }
        }
        if self.device.config_changes().is_some() {
            features |= ProtocolFeatures::BACKEND_REQ;
        }
        if self.device.tracks_inflight() {
            features |= ProtocolFeatures::INFLIGHT_SHMFD;
        }
        features & ProtocolFeatures::from_bits_retain(self.transport.protocol_features())
    }

    pub(super) fn get_protocol_features(&mut self) -> Handled {
        let offered = self.offered_protocol_features();
        Ok(Outcome::Reply(Reply::U64(offered.bits())))
    }

    pub(super) fn set_protocol_features(&mut self, bits: u64) -> Handled {
        let acked = ProtocolFeatures::from_bits_retain(bits);
        let offered = self.offered_protocol_features();
        if !offered.contains(acked) {
            return Err(SessionError::ProtocolFeatures {
                acked: acked.bits(),
                offered: offered.bits(),
            });
        }
        self.state.protocol = acked;
        tracing::info!("protocol features {acked}");
        Ok(Outcome::Done)
    }

    /// The number of queues. QEMU's vhost-user-net and DPDK compare it with queue *pairs*, but
    /// QEMU's generic devices and rust-vmm's front-ends compare it with queues and refuse those
    /// beyond. Queues are what the text says and what all of them can work with.
    pub(super) fn get_queue_num(&mut self) -> Handled {
        Ok(Outcome::Reply(Reply::U64(self.state.rings.len() as u64)))
    }

    /// The text has it that this disables all rings, and nothing else. Front-ends that still
    /// send it (Cloud Hypervisor at a reset) set up all rings anew, so they are stopped, too.
    pub(super) fn reset_owner(&mut self) -> Handled {
        self.stop_all_rings();
        for ring in &mut self.state.rings {
            ring.enabled = None;
            ring.kick = None;
        }
        self.forget_inflight();
        Ok(Outcome::Done)
    }

    /// The device forgets everything. What belongs to the connection stays: protocol features,
    /// memory, calls.
    pub(super) fn reset_device(&mut self) -> Handled {
        self.stop_all_rings();
        self.device.reset();
        for ring in &mut self.state.rings {
            ring.forget();
        }
        self.forget_inflight();
        self.state.features = Features::empty();
        self.state.features_refused = false;
        self.state.device_status = 0;
        self.status.features(0);
        tracing::info!("device reset by the front-end");
        Ok(Outcome::Done)
    }

    pub(super) fn set_status(&mut self, bits: u64) -> Handled {
        let mut status = u8::try_from(bits).map_err(|_| SessionError::Value {
            name: "SET_STATUS",
            value: bits,
        })?;
        if status == 0 {
            return self.reset_device();
        }
        if self.state.features_refused {
            // The driver reads the status back to see whether its features were accepted.
            status &= !STATUS_FEATURES_OK;
        }
        self.state.device_status = status;
        Ok(Outcome::Done)
    }

    pub(super) fn get_status(&mut self) -> Handled {
        let status = self.state.device_status.into();
        Ok(Outcome::Reply(Reply::U64(status)))
    }

    pub(super) fn get_config(&mut self, mut config: ConfigSpace) -> Handled {
        check_config("GET_CONFIG", &config)?;
        self.device.read_config(config.offset, &mut config.data)?;
        Ok(Outcome::Reply(Reply::Config(config)))
    }

    pub(super) fn set_config(&mut self, config: &ConfigSpace) -> Handled {
        check_config("SET_CONFIG", config)?;
        self.device.write_config(config.offset, &config.data)?;
        Ok(Outcome::Done)
    }

    pub(super) fn send_rarp(&mut self, number: u64) -> Handled {
        let [a, b, c, d, e, f, ..] = number.to_le_bytes();
        self.device.announce([a, b, c, d, e, f])?;
        Ok(Outcome::Done)
    }

    pub(super) fn net_set_mtu(&mut self, number: u64) -> Handled {
        let mtu = u16::try_from(number).map_err(|_| SessionError::Value {
            name: "NET_SET_MTU",
            value: number,
        })?;
        self.device.set_mtu(mtu)?;
        Ok(Outcome::Done)
    }
}

/// Flags are 0 for the driver's accesses and 1 for those of live migration.
fn check_config(name: &'static str, config: &ConfigSpace) -> Result<(), SessionError> {
    if config.flags > 1 {
        return Err(SessionError::Value {
            name,
            value: config.flags.into(),
        });
    }
    if config.data.is_empty() || config.data.len() > MAX_CONFIG {
        return Err(SessionError::Value {
            name,
            value: config.data.len() as u64,
        });
    }
    Ok(())
}
