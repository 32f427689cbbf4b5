//! What a front-end asks for, understood and checked.

use super::payload::{Number, Payload, VRING_ADDR_LOG};
use super::{
    ConfigSpace, DeviceState, FLAG_NEED_REPLY, FLAG_REPLY, Inflight, Iotlb, LogArea,
    MAX_TABLE_REGIONS, MemRegion, Message, ProtocolError, VERSION, VERSION_MASK, VringAddr,
    VringFd, VringState, info,
};

/// A front-end's request. Names are those of the vhost-user text.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Request {
    GetFeatures,
    SetFeatures(u64),
    SetOwner,
    ResetOwner,
    SetMemTable(Vec<MemRegion>),
    SetLogBase(LogArea),
    SetLogFd,
    SetVringNum(VringState),
    SetVringAddr(VringAddr),
    SetVringBase(VringState),
    GetVringBase(VringState),
    SetVringKick(VringFd),
    SetVringCall(VringFd),
    SetVringErr(VringFd),
    GetProtocolFeatures,
    SetProtocolFeatures(u64),
    GetQueueNum,
    SetVringEnable(VringState),
    SendRarp(u64),
    NetSetMtu(u64),
    SetBackendReqFd,
    IotlbMsg(Iotlb),
    SetVringEndian(VringState),
    GetConfig(ConfigSpace),
    SetConfig(ConfigSpace),
    CreateCryptoSession(Vec<u8>),
    CloseCryptoSession(u64),
    PostcopyAdvise,
    PostcopyListen,
    PostcopyEnd,
    GetInflightFd(Inflight),
    SetInflightFd(Inflight),
    GpuSetSocket,
    ResetDevice,
    VringKick(VringState),
    GetMaxMemSlots,
    AddMemReg(MemRegion),
    RemMemReg(MemRegion),
    SetStatus(u64),
    GetStatus,
    GetSharedObject([u8; 16]),
    SetDeviceStateFd(DeviceState),
    CheckDeviceState,
    GetShmemConfig,
    GetVringBaseSkipDrain(VringState),
    /// A request that is not in the table.
    Unknown {
        number: u32,
        payload: Vec<u8>,
    },
}

/// A message's payload and the name that errors give it.
struct Body<'a> {
    name: &'static str,
    bytes: &'a [u8],
}

impl Body<'_> {
    fn size(&self, expected: usize) -> ProtocolError {
        ProtocolError::Size {
            name: self.name,
            found: self.bytes.len(),
            expected,
        }
    }

    /// `request`, if there is no payload.
    fn none(&self, request: Request) -> Result<Request, ProtocolError> {
        match self.bytes {
            [] => Ok(request),
            _ => Err(self.size(0)),
        }
    }

    fn fixed<T: Payload>(&self) -> Result<T, ProtocolError> {
        T::parse(self.bytes).ok_or_else(|| self.size(T::SIZE))
    }

    fn number(&self) -> Result<u64, ProtocolError> {
        Ok(self.fixed::<Number>()?.0)
    }

    fn vring_fd(&self) -> Result<VringFd, ProtocolError> {
        VringFd::from_number(self.number()?).map_err(|bits| self.reserved(bits))
    }

    fn reserved(&self, bits: u64) -> ProtocolError {
        ProtocolError::Reserved {
            name: self.name,
            bits,
        }
    }

    fn vring_addr(&self) -> Result<VringAddr, ProtocolError> {
        let addr = self.fixed::<VringAddr>()?;
        match addr.flags & !VRING_ADDR_LOG {
            0 => Ok(addr),
            bits => Err(self.reserved(bits.into())),
        }
    }

    fn config(&self) -> Result<ConfigSpace, ProtocolError> {
        ConfigSpace::parse(self.bytes).map_err(|expected| self.size(expected))
    }

    /// Number of regions, padding, then the regions.
    fn regions(&self) -> Result<Vec<MemRegion>, ProtocolError> {
        const HEAD: usize = 8;
        let too_short = || self.size(HEAD);
        let (head, rest) = self.bytes.split_at_checked(HEAD).ok_or_else(too_short)?;
        let count = VringState::parse(head).ok_or_else(too_short)?.index;
        if count as usize > MAX_TABLE_REGIONS {
            return Err(ProtocolError::Regions {
                name: self.name,
                found: count,
            });
        }
        let expected = MemRegion::SIZE * count as usize;
        if rest.len() != expected {
            return Err(self.size(HEAD + expected));
        }
        Ok(rest
            .chunks_exact(MemRegion::SIZE)
            .filter_map(MemRegion::parse)
            .collect())
    }

    /// 8 bytes of padding, then one region.
    fn region(&self) -> Result<MemRegion, ProtocolError> {
        let error = || self.size(8 + MemRegion::SIZE);
        let (_, rest) = self.bytes.split_at_checked(8).ok_or_else(error)?;
        MemRegion::parse(rest).ok_or_else(error)
    }

    /// The text has 20 bytes; C's padding makes 24 of them, and all known front-ends send those.
    fn inflight(&self) -> Result<Inflight, ProtocolError> {
        let mut padded = self.bytes.to_vec();
        if padded.len() == Inflight::SIZE - 4 {
            padded.resize(Inflight::SIZE, 0);
        }
        Inflight::parse(&padded).ok_or_else(|| self.size(Inflight::SIZE))
    }
}

impl Request {
    /// What `message` asks for.
    pub fn parse(message: &Message) -> Result<Self, ProtocolError> {
        let name = info(message.request).map_or("an unknown request", |info| info.name);
        let version = message.flags & VERSION_MASK;
        if version != VERSION {
            return Err(ProtocolError::Version { name, version });
        }
        if message.flags & FLAG_REPLY != 0 {
            return Err(ProtocolError::Reply(name));
        }
        let reserved = message.flags & !(VERSION_MASK | FLAG_NEED_REPLY);
        let body = Body {
            name,
            bytes: &message.payload,
        };
        if reserved != 0 {
            return Err(body.reserved(reserved.into()));
        }
        Self::parse_body(message.request, &body)
    }

    fn parse_body(number: u32, body: &Body<'_>) -> Result<Self, ProtocolError> {
        Ok(match number {
            1 => body.none(Self::GetFeatures)?,
            2 => Self::SetFeatures(body.number()?),
            3 => body.none(Self::SetOwner)?,
            4 => body.none(Self::ResetOwner)?,
            5 => Self::SetMemTable(body.regions()?),
            6 => Self::SetLogBase(body.fixed()?),
            7 => body.none(Self::SetLogFd)?,
            8 => Self::SetVringNum(body.fixed()?),
            9 => Self::SetVringAddr(body.vring_addr()?),
            10 => Self::SetVringBase(body.fixed()?),
            11 => Self::GetVringBase(body.fixed()?),
            12 => Self::SetVringKick(body.vring_fd()?),
            13 => Self::SetVringCall(body.vring_fd()?),
            14 => Self::SetVringErr(body.vring_fd()?),
            15 => body.none(Self::GetProtocolFeatures)?,
            16 => Self::SetProtocolFeatures(body.number()?),
            17 => body.none(Self::GetQueueNum)?,
            18 => Self::SetVringEnable(body.fixed()?),
            19 => Self::SendRarp(body.number()?),
            20 => Self::NetSetMtu(body.number()?),
            21 => body.none(Self::SetBackendReqFd)?,
            22 => Self::IotlbMsg(body.fixed()?),
            23 => Self::SetVringEndian(body.fixed()?),
            24 => Self::GetConfig(body.config()?),
            25 => Self::SetConfig(body.config()?),
            26 => Self::CreateCryptoSession(body.bytes.to_vec()),
            27 => Self::CloseCryptoSession(body.number()?),
            28 => body.none(Self::PostcopyAdvise)?,
            29 => body.none(Self::PostcopyListen)?,
            30 => body.none(Self::PostcopyEnd)?,
            31 => Self::GetInflightFd(body.inflight()?),
            32 => Self::SetInflightFd(body.inflight()?),
            33 => body.none(Self::GpuSetSocket)?,
            34 => body.none(Self::ResetDevice)?,
            35 => Self::VringKick(body.fixed()?),
            36 => body.none(Self::GetMaxMemSlots)?,
            37 => Self::AddMemReg(body.region()?),
            38 => Self::RemMemReg(body.region()?),
            39 => Self::SetStatus(body.number()?),
            40 => body.none(Self::GetStatus)?,
            41 => Self::GetSharedObject(body.bytes.try_into().map_err(|_| body.size(16))?),
            42 => Self::SetDeviceStateFd(body.fixed()?),
            43 => body.none(Self::CheckDeviceState)?,
            44 => body.none(Self::GetShmemConfig)?,
            45 => Self::GetVringBaseSkipDrain(body.fixed()?),
            number => Self::Unknown {
                number,
                payload: body.bytes.to_vec(),
            },
        })
    }

    /// The request's number and payload.
    fn emit(&self) -> (u32, Vec<u8>) {
        let number = |number: u64| Number(number).emit();
        match self {
            Self::GetFeatures => (1, vec![]),
            Self::SetFeatures(bits) => (2, number(*bits)),
            Self::SetOwner => (3, vec![]),
            Self::ResetOwner => (4, vec![]),
            Self::SetMemTable(regions) => (5, emit_regions(regions)),
            Self::SetLogBase(log) => (6, log.emit()),
            Self::SetLogFd => (7, vec![]),
            Self::SetVringNum(state) => (8, state.emit()),
            Self::SetVringAddr(addr) => (9, addr.emit()),
            Self::SetVringBase(state) => (10, state.emit()),
            Self::GetVringBase(state) => (11, state.emit()),
            Self::SetVringKick(fd) => (12, number(fd.to_number())),
            Self::SetVringCall(fd) => (13, number(fd.to_number())),
            Self::SetVringErr(fd) => (14, number(fd.to_number())),
            Self::GetProtocolFeatures => (15, vec![]),
            Self::SetProtocolFeatures(bits) => (16, number(*bits)),
            Self::GetQueueNum => (17, vec![]),
            Self::SetVringEnable(state) => (18, state.emit()),
            Self::SendRarp(mac) => (19, number(*mac)),
            Self::NetSetMtu(mtu) => (20, number(*mtu)),
            Self::SetBackendReqFd => (21, vec![]),
            Self::IotlbMsg(iotlb) => (22, iotlb.emit()),
            Self::SetVringEndian(state) => (23, state.emit()),
            Self::GetConfig(config) => (24, config.emit()),
            Self::SetConfig(config) => (25, config.emit()),
            Self::CreateCryptoSession(bytes) => (26, bytes.clone()),
            Self::CloseCryptoSession(id) => (27, number(*id)),
            Self::PostcopyAdvise => (28, vec![]),
            Self::PostcopyListen => (29, vec![]),
            Self::PostcopyEnd => (30, vec![]),
            Self::GetInflightFd(inflight) => (31, inflight.emit()),
            Self::SetInflightFd(inflight) => (32, inflight.emit()),
            Self::GpuSetSocket => (33, vec![]),
            Self::ResetDevice => (34, vec![]),
            Self::VringKick(state) => (35, state.emit()),
            Self::GetMaxMemSlots => (36, vec![]),
            Self::AddMemReg(region) => (37, [vec![0; 8], region.emit()].concat()),
            Self::RemMemReg(region) => (38, [vec![0; 8], region.emit()].concat()),
            Self::SetStatus(status) => (39, number(*status)),
            Self::GetStatus => (40, vec![]),
            Self::GetSharedObject(uuid) => (41, uuid.to_vec()),
            Self::SetDeviceStateFd(state) => (42, state.emit()),
            Self::CheckDeviceState => (43, vec![]),
            Self::GetShmemConfig => (44, vec![]),
            Self::GetVringBaseSkipDrain(state) => (45, state.emit()),
            Self::Unknown { number, payload } => (*number, payload.clone()),
        }
    }

    /// The message that asks for this.
    pub fn to_message(&self, need_reply: bool) -> Message {
        let (request, payload) = self.emit();
        Message {
            request,
            flags: VERSION | if need_reply { FLAG_NEED_REPLY } else { 0 },
            payload,
        }
    }
}

fn emit_regions(regions: &[MemRegion]) -> Vec<u8> {
    let mut bytes = VringState {
        index: regions.len() as u32,
        num: 0,
    }
    .emit();
    for region in regions {
        bytes.extend_from_slice(&region.emit());
    }
    bytes
}
